"""What people do with a trained system: draw pictures from prompts, answer in a chat.

The command line, the chat and the scores all go through these two functions, with the same defaults.
"""

from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from unimm.config.model import VisionFeatures
from unimm.config.sampling import Sampling
from unimm.errors import UserError
from unimm.generate.decode import Request, decode, image_request
from unimm.generate.guidance import warn
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
    automaton, sampling = system.layout.automaton(), sampling or system.recipe.sampling
    warn(system.recipe, sampling, any(isinstance(part, Image) for parts in contexts for part in parts))
    requests = [image_request(system.layout, automaton, _praised(encoded(system, parts), sampling), None, guided, seed,
                              _negative(parts, sampling)) for parts, seed in zip(contexts, seeds, strict=True)]
    _check_lengths(system, requests)
    decode(system.model, system.layout, automaton, requests, sampling)
    codes = [written_image(system, r) for r in requests]
    return to_pixels(system.tokenizer, codes)


def _praised(parts: tuple[Part, ...], sampling: Sampling) -> tuple[Part, ...]:
    """The prompt with the words that the release adds to it."""
    last = parts[-1]
    if not (sampling.positive and isinstance(last, Text)):
        return parts
    return (*parts[:-1], replace(last, text=last.text + sampling.positive))


def _negative(parts: Many[Part], sampling: Sampling) -> tuple[Part, ...]:
    return (Text(sampling.negative, role=parts[-1].role and "user"),) if sampling.negative else ()


def written_image(system: System, request: Request) -> Codes:
    """The codes of the image that a request ended with."""
    ids = np.concatenate([request.prompt.ids, request.ids])
    return system.layout.parse(ids, slots=request.prompt.slots).images[-1].content


def answer(system: System, contexts: Many[Many[Part]], sampling: Sampling | None = None, seed: int = 0) -> list[str]:
    """The text that follows each context, as far as its end."""
    sampling = sampling or system.recipe.sampling
    requests = _texts(system, contexts, sampling, seed)
    return [system.layout.said(r.ids, parts[-1].role is not None)
            for r, parts in zip(requests, contexts, strict=True)]


def _texts(system: System, contexts: Many[Many[Part]], sampling: Sampling, seed: int) -> list[Request]:
    requests = [Request(system.layout.prompt(encoded(system, parts)), seed=seed + n, limit=sampling.text_length)
                for n, parts in enumerate(contexts)]
    _check_lengths(system, requests)
    decode(system.model, system.layout, system.layout.automaton(), requests, sampling)
    return requests


def reply(system: System, parts: Many[Part], sampling: Sampling | None = None, seed: int = 0) -> list[Text | Image]:
    """What the assistant says next in a chat: text, or text and a picture where the model begins one.

    Raises PromptError where the chat does not fit the positions the model was trained on.
    """
    sampling = sampling or system.recipe.sampling
    parts = encoded(system, parts)
    request = _texts(system, [parts], sampling, seed)[0]
    layout = system.layout
    said = layout.said(request.ids, True)
    spoken: list[Text | Image] = [Text(said, role="assistant")] if said else []
    begins = {plan.header[0] for plan in layout.write_plans.values()}
    if request.ids and request.ids[-1] in begins:
        picture = draw(system, [(*parts, *spoken)], [seed], sampling)[0]
        spoken.append(Image(Pixels(picture), role="assistant"))
    return spoken


def _check_lengths(system: System, requests: list[Request]) -> None:
    longest = max(s.seq_len for s in system.recipe.language.values())
    for request in requests:
        if len(request.prompt) >= longest:
            raise PromptError(f"the prompt is {len(request.prompt)} tokens long, but the model was trained on at most "
                              f"{longest}; say less, show fewer images, or start a new conversation")
