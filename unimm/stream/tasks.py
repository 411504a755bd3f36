"""What a stage makes of a dataset's pairs: the same picture and words, to draw or to describe."""

from dataclasses import replace
from typing import Literal, assert_never

from unimm.errors import UserError
from unimm.sample import Image, Sample, Text

Task = Literal["t2i", "caption", "draw", "as_is"]


class TaskError(UserError):
    """A task asked for what a sample does not have; the message names the sample, the task and the remedy."""


def as_task(task: Task, key: str, made: Sample) -> Sample:
    """The sample with its parts ordered and marked for the task of a `Use`; `key` names it in errors.

    Raises TaskError where the task needs a pair and the sample is none, or nothing in the sample is learned.
    """
    match task:
        case "t2i":
            image, text = _pair(task, key, made)
            return Sample((Text(text.text), replace(image, learn=True, role=None)))
        case "caption":
            image, text = _pair(task, key, made)
            return Sample((replace(image, learn=False, role=None), Text(text.text, learn=True)))
        case "draw":
            image, text = _pair(task, key, made)
            return Sample((Text(text.text, role="user"), replace(image, learn=True, role="assistant")))
        case "as_is":
            if not any(part.learn for part in made.parts):
                raise TaskError(f"{key}: nothing in it is learned; for a pair choose the task t2i, caption or draw")
            return made
        case _:
            assert_never(task)


def _pair(task: Task, key: str, made: Sample) -> tuple[Image, Text]:
    """The image and the text of a pair, in whichever order they are."""
    match made.parts:
        case (Image() as image, Text() as text) | (Text() as text, Image() as image):
            return image, text
    found = ", ".join(type(part).__name__.lower() for part in made.parts)
    raise TaskError(f"{key}: task {task!r} takes one image and one text, this sample is {found}; use task 'as_is'")


def can_drop_context(made: Sample) -> bool:
    """Whether the sample has an unconditional form to learn: something, and then a learned image at its end."""
    last = made.parts[-1]
    return isinstance(last, Image) and last.learn and len(made.parts) > 1
