"""What a stage makes of a dataset's pairs: the same picture and words, to draw or to describe."""

from dataclasses import replace
from typing import assert_never

from unimm.config.data import Task
from unimm.errors import UserError
from unimm.sample import Image, Sample, Text


class TaskError(UserError):
    """A task asked for what a sample does not have; the message names the sample, the task and the remedy."""


def as_task(task: Task, key: str, made: Sample) -> Sample:
    """The sample with its parts ordered and marked for the task of a `Use`; `key` names it in errors.

    Raises TaskError where the task needs a pair and the sample is none, or nothing in the sample is learned.
    """
    if task == "as_is":
        if not any(part.learn for part in made.parts):
            raise TaskError(f"{key}: nothing in it is learned; for a pair choose the task t2i, caption or draw")
        return made
    by_kind = {type(part): part for part in made.parts}
    if len(made.parts) != 2 or by_kind.keys() != {Image, Text}:
        found = ", ".join(type(part).__name__.lower() for part in made.parts)
        raise TaskError(f"{key}: task {task!r} takes one image and one text, this sample is {found}; use task 'as_is'")
    image, words = by_kind[Image], by_kind[Text].text
    match task:
        case "t2i":
            return Sample((Text(words), replace(image, learn=True, role=None)))
        case "caption":
            return Sample((replace(image, learn=False, role=None), Text(words, learn=True)))
        case "draw":
            return Sample((Text(words, role="user"), replace(image, learn=True, role="assistant")))
        case _:
            assert_never(task)


def can_drop_context(made: Sample) -> bool:
    """Whether the sample has an unconditional form to learn: something, and then a learned image at its end."""
    last = made.parts[-1]
    return isinstance(last, Image) and last.learn and len(made.parts) > 1
