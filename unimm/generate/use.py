"""What people do with a trained system: draw pictures, answer in a chat, go on with a document.

The command line, the chat, the scores and Python all go through these functions, with the same defaults.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from unimm.config.model import VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.sampling import Sampling
from unimm.errors import UserError
from unimm.generate.decode import decode, decoded
from unimm.generate.guidance import warn
from unimm.generate.request import Request, drawing, written
from unimm.images.prepare import as_seen, prepare
from unimm.images.tokenizer import to_codes, to_pixels
from unimm.layout import Layout
from unimm.sample import Image, Part, Pixels, Text
from unimm.system import System


class PromptError(UserError):
    """A prompt that the model can't read."""


def encoded(system: System, parts: Many[Part]) -> tuple[Part, ...]:
    """The parts with pixels turned to codes by the system's tokenizer, brought to a size that it takes."""
    images = [p for p in parts if isinstance(p, Image) and isinstance(p.content, Pixels)]
    config, sizes = system.recipe.image_tokenizer, system.recipe.layout.sizes
    codes = iter(to_codes(system.tokenizer, [prepare(config, p.content.array, sizes) for p in images]))
    how = system.recipe.image_in

    def read(image: Image) -> Image:
        seen = as_seen(how, image.content.array) if isinstance(how, VisionFeatures) else None
        return replace(image, content=next(codes), seen=seen)

    return tuple(read(p) if p in images else p for p in parts)


def asked(shown: Many[np.ndarray], words: str) -> tuple[Part, ...]:
    """Somebody's words about pictures; without pictures a caption."""
    role = "user" if shown else None
    return (*(Image(Pixels(array), role=role) for array in shown), Text(words, role=role))


def check_prompt(recipe: Recipe, layout: Layout, request: Request) -> None:
    """Raises PromptError where there is nothing to draw, or where prompt and image are longer than the model's rows.

    Needs no model; pictures among the parts are counted only once they are codes.
    """
    parts, sampling, size = request.parts, request.sampling, request.size
    if not parts:
        raise PromptError('the prompt is empty; say what to draw, such as "a red circle"')
    read = tuple(p for p in parts if not (isinstance(p, Image) and isinstance(p.content, Pixels)))
    negative = (Text(sampling.negative, role=parts[-1].role and "user"),) if sampling.negative else ()
    for some in (read and _praised(read, sampling), negative):
        if some:
            prompt = len(layout.prompt(some, "image", size)) - len(layout.write_plans[size].header)
            _check_length(recipe, prompt, layout.tokens(size))


def drawn(system: System, wishes: Iterable[Request], rows: int = 256) -> Iterator[tuple[int, np.ndarray, int]]:
    """Pictures as they are finished, `rows` under way at a time: (number of the wish, uint8 (height, width, 3), how
    many steps of the model it took). Wishes are requests for an image whose parts may be pixels.

    Raises PromptError for a prompt that is empty, or longer than what the model was trained on.
    """
    numbers: dict[Request, int] = {}

    def requests() -> Iterator[Request]:
        for number, wish in enumerate(wishes):
            request = drawing(encoded(system, wish.parts), wish.sampling, wish.size, wish.seed)
            check_prompt(system.recipe, system.layout, request)
            warn(system.recipe, request.sampling, any(isinstance(part, Image) for part in request.parts))
            request.parts = _praised(request.parts, request.sampling)
            numbers[request] = number
            yield request

    automaton = system.layout.automaton
    for done in decoded(system.model, system.layout, requests(), rows):
        codes = [written(system.layout, automaton, request)[-1].content for request in done]
        for request, picture in zip(done, to_pixels(system.drawer, codes)):
            yield numbers.pop(request), picture, request.steps


def draw(system: System, contexts: Iterable[Many[Part]], seeds: Iterable[int], sampling: Sampling | None = None,
         size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """One picture, uint8 (height, width, 3), after each context; `size` in rows and columns of codes.

    Raises PromptError for a prompt that is empty, or longer than what the model was trained on.
    """
    sampling, size = sampling or system.recipe.sampling, size or system.recipe.layout.sizes[0]
    wishes = (drawing(parts, sampling, size, seed) for parts, seed in zip(contexts, seeds, strict=True))
    found = {number: picture for number, picture, _ in drawn(system, wishes)}
    return [found[number] for number in range(len(found))]


def _praised(parts: tuple[Part, ...], sampling: Sampling) -> tuple[Part, ...]:
    """The prompt with the words that the release adds to it."""
    last = parts[-1]
    if not (sampling.positive and isinstance(last, Text)):
        return parts
    return (*parts[:-1], replace(last, text=last.text + sampling.positive))


def answer(system: System, contexts: Iterable[Many[Part]], sampling: Sampling | None = None,
           seed: int = 0) -> list[str]:
    """The text that follows each context, as far as its end."""
    sampling = sampling or system.recipe.sampling
    requests: list[Request] = []

    def questions() -> Iterator[Request]:
        for n, parts in enumerate(contexts):
            requests.append(Request(encoded(system, parts), sampling, seed + n))
            _check_length(system.recipe, len(system.layout.prompt(requests[n].parts)), 1)
            yield requests[n]

    decode(system.model, system.layout, questions())
    return [system.layout.said(r.ids, r.parts[-1].role is not None) for r in requests]


def reply(system: System, parts: Many[Part], sampling: Sampling | None = None, seed: int = 0) -> list[Text | Image]:
    """What the assistant says next in a chat: text, or text and a picture where the model begins one.

    Raises PromptError where the chat does not fit the positions the model was trained on.
    """
    return go_on(system, parts, sampling, seed, images=1, text=False)


def go_on(system: System, parts: Many[Part], sampling: Sampling | None = None, seed: int = 0, images: int = 4,
          text: bool = True) -> list[Text | Image]:
    """What the model writes behind a document or a chat: texts and at most `images` pictures, in its own order, fewer
    where the positions that it was trained on hold no more; `text` also behind the last of them.

    Raises PromptError where there is nothing to go on from, or no room is left.
    """
    if not parts:
        raise PromptError("the conversation is empty; say something")
    layout, sampling = system.layout, sampling or system.recipe.sampling
    context = encoded(system, parts)
    read = len(layout.prompt(context))
    _check_length(system.recipe, read, 1)
    room = (longest(system.recipe) - read - sampling.text_length) // max(map(layout.tokens, layout.config.sizes))
    request = Request(context, sampling, seed, images=min(images, max(1, room)), text=text)
    decode(system.model, layout, [request])
    found = written(layout, layout.automaton, request)
    pictures = iter(to_pixels(system.drawer, [part.content for part in found if isinstance(part, Image)]))
    return [replace(part, content=Pixels(next(pictures)), learn=False) if isinstance(part, Image) else part
            for part in found]


def longest(recipe: Recipe) -> int:
    """The most positions that the model was trained on."""
    return max(stage.seq_len for stage in recipe.language.values())


def _check_length(recipe: Recipe, prompt: int, more: int) -> None:
    if prompt + more > (most := longest(recipe)):
        image = f", {more} of them the image's" if more > 1 else ""
        raise PromptError(f"the prompt is {prompt} tokens long, but the model was trained on at most {most}{image}; "
                          "say less, show fewer images, or start a new conversation")
