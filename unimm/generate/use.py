"""What people do with a trained system: draw pictures from prompts, answer in a chat.

The command line, the chat and the scores all go through these two functions, with the same defaults.
"""

from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from unimm.config.model import VisionFeatures
from unimm.config.sampling import Sampling
from unimm.errors import UserError
from unimm.generate.decode import decode
from unimm.generate.guidance import warn
from unimm.generate.request import Request, drawing, written
from unimm.images.prepare import as_seen, prepare
from unimm.images.tokenizer import to_codes, to_pixels
from unimm.sample import Codes, Image, Part, Pixels, Text
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


def draw(system: System, contexts: Many[Many[Part]], seeds: Many[int], sampling: Sampling | None = None,
         guided: bool = True) -> list[np.ndarray]:
    """One picture, uint8 (height, width, 3), after each context (a caption, or a chat with an instruction).

    Raises PromptError for a prompt that is empty, or longer than what the model was trained on.
    """
    if any(not parts for parts in contexts):
        raise PromptError("the prompt is empty; say what to draw")
    sampling = sampling or system.recipe.sampling
    sampling = sampling if guided else replace(sampling, guidance=1.0, image_guidance=0.0)
    warn(system.recipe, sampling, any(isinstance(part, Image) for parts in contexts for part in parts))
    size = system.recipe.layout.sizes[0]
    requests = [drawing(_praised(encoded(system, parts), sampling), sampling, size, seed)
                for parts, seed in zip(contexts, seeds, strict=True)]
    _decode(system, requests)
    return to_pixels(system.tokenizer, [written_image(system, request) for request in requests])


def _praised(parts: tuple[Part, ...], sampling: Sampling) -> tuple[Part, ...]:
    """The prompt with the words that the release adds to it."""
    last = parts[-1]
    if not (sampling.positive and isinstance(last, Text)):
        return parts
    return (*parts[:-1], replace(last, text=last.text + sampling.positive))


def written_image(system: System, request: Request) -> Codes:
    """The codes of the image that a request ended with."""
    return written(system.layout, system.layout.automaton(), request)[-1].content


def answer(system: System, contexts: Many[Many[Part]], sampling: Sampling | None = None, seed: int = 0) -> list[str]:
    """The text that follows each context, as far as its end."""
    sampling = sampling or system.recipe.sampling
    requests = [Request(encoded(system, parts), sampling, seed + n) for n, parts in enumerate(contexts)]
    _decode(system, requests)
    return [system.layout.said(r.ids, r.parts[-1].role is not None) for r in requests]


def reply(system: System, parts: Many[Part], sampling: Sampling | None = None, seed: int = 0) -> list[Text | Image]:
    """What the assistant says next in a chat: text, or text and a picture where the model begins one.

    Raises PromptError where the chat does not fit the positions the model was trained on.
    """
    request = Request(encoded(system, parts), sampling or system.recipe.sampling, seed, images=1, text=False)
    _decode(system, [request])
    return [replace(part, content=Pixels(to_pixels(system.tokenizer, [part.content])[0]), learn=False)
            if isinstance(part, Image) else part
            for part in written(system.layout, system.layout.automaton(), request)]


def _decode(system: System, requests: list[Request]) -> None:
    longest = max(s.seq_len for s in system.recipe.language.values())
    for request in requests:
        prompt = system.layout.prompt(request.parts, "image" if request.size else "text", request.size)
        if len(prompt) >= longest:
            raise PromptError(f"the prompt is {len(prompt)} tokens long, but the model was trained on at most "
                              f"{longest}; say less, show fewer images, or start a new conversation")
    decode(system.model, system.layout, requests)
