"""What people do with a trained system: draw pictures, answer in a chat, go on with a document.

The command line, the chat, the scores and Python all go through these functions, with the same defaults.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unimm.config.model import VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.sampling import Sampling
from unimm.diffusion.detokenizer import FlowDetokenizer
from unimm.errors import UserError
from unimm.generate.decode import decode, decoded
from unimm.generate.request import Request, drawing, warn, written
from unimm.images.base import arrays
from unimm.images.prepare import as_seen, prepare
from unimm.images.tokenizer import to_codes, to_pixels
from unimm.layout import Layout
from unimm.model.cache import sent
from unimm.model.unified import UnifiedModel
from unimm.sample import Codes, Image, Part, Pixels, Sample, Text
from unimm.stream.batches import make_batch
from unimm.system import System


class PromptError(UserError):
    """A prompt or a document that can't be read, or what is said of it; the message names its place and the remedy."""


def encoded(system: System, parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with pixels turned to codes by the system's tokenizer, brought to a size that it takes."""
    recipe, images = system.recipe, [p.content.array for p in parts if _is_picture(p)]
    codes = iter(to_codes(system.tokenizer, [prepare(recipe.image_tokenizer, a, recipe.layout.sizes) for a in images]))
    seen = iter([as_seen(recipe.image_in, a) if isinstance(recipe.image_in, VisionFeatures) else None for a in images])
    return tuple(replace(p, content=next(codes), seen=next(seen)) if _is_picture(p) else p for p in parts)


def _is_picture(part: Part) -> bool:
    return isinstance(part, Image) and isinstance(part.content, Pixels)


def asked(shown: Sequence[np.ndarray], words: str) -> tuple[Part, ...]:
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
    read = tuple(part for part in parts if not _is_picture(part))
    negative = (Text(sampling.negative, role=parts[-1].role and "user"),) if sampling.negative else ()
    for some in filter(None, (read, negative)):
        prompt = len(layout.prompt(some, "image", size)) - len(layout.write_plans[size].header)
        _room(recipe, prompt, layout.tokens(size))


def drawn(system: System, wishes: Iterable[Request], rows: int = 256) -> Iterator[tuple[int, np.ndarray, int]]:
    """Pictures as they are finished, `rows` under way at a time: (number of the wish, uint8 (height, width, 3), how
    many steps of the model it took). Wishes are requests for an image whose parts may be pixels.

    Raises PromptError for a prompt that is empty, or longer than what the model was trained on.
    """
    numbers: dict[Request, int] = {}

    def requests() -> Iterator[Request]:
        for number, wish in enumerate(wishes):
            wish.parts = encoded(system, wish.parts)
            check_prompt(system.recipe, system.layout, wish)
            warn(system.recipe, wish.sampling, any(isinstance(part, Image) for part in wish.parts))
            numbers[wish] = number
            yield wish

    for done in decoded(system.model, system.layout, requests(), rows):
        pictures = _pictures(system, [(*request.parts, written(system.layout, request)[-1]) for request in done])
        for request, picture in zip(done, pictures):
            yield numbers.pop(request), picture, request.steps


def _pictures(system: System, written_so_far: list[tuple[Part, ...]]) -> list[np.ndarray]:
    """The pictures that parts end in, as codes, drawn from these or from the model's states behind what precedes."""
    hidden = isinstance(system.drawer, FlowDetokenizer) and system.drawer.config.condition == "hidden"
    states = image_states(system.model, system.layout, written_so_far) if hidden and written_so_far else None
    return to_pixels(system.drawer, [parts[-1].content for parts in written_so_far], states)


@torch.no_grad()
def image_states(model: UnifiedModel, layout: Layout, samples: Sequence[tuple[Part, ...]]) -> list[Tensor]:
    """The last hidden states that the codes of the image at each sample's end are written from, float32 (width, h, w);
    of several levels those of the last one. Raises LayoutError where the layout can't write a sample."""
    def made(parts: tuple[Part, ...]) -> Sample:
        return Sample((*(replace(part, learn=False) for part in parts[:-1]), replace(parts[-1], learn=True)))

    documents = [[layout.render(made(parts))] for parts in samples]
    batch = make_batch(documents, max(len(one) for one, in documents), layout.pad_id, layout.vocab.is_code)
    ids, position, document = (sent(x, model.device) for x in (batch.ids, batch.position, batch.document))
    hidden, found = model.hidden(ids, position, document, batch.lengths, batch.slots).float(), []
    for parts, states, which in zip(samples, hidden, batch.image & batch.learn):
        content = parts[-1].content
        last = content.levels[-1] if isinstance(content, Codes) else content
        h, w = last.grid or (1, len(arrays(content)[-1]))  # without a grid they are one row
        found.append(states[sent(which.nonzero()[0][-h * w:], model.device)].mT.unflatten(1, (h, w)))
    return found


def draw(system: System, contexts: Iterable[Sequence[Part]], seeds: Iterable[int], sampling: Sampling | None = None,
         size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """One picture, uint8 (height, width, 3), after each context; `size` in rows and columns of codes.

    Raises PromptError for a prompt that is empty, or longer than what the model was trained on.
    """
    sampling, size = sampling or system.recipe.sampling, size or system.recipe.layout.sizes[0]
    wishes = (drawing(parts, sampling, size, seed) for parts, seed in zip(contexts, seeds, strict=True))
    return [picture for _, picture, _ in sorted(drawn(system, wishes), key=lambda each: each[0])]


def answer(system: System, contexts: Iterable[Sequence[Part]], sampling: Sampling | None = None,
           seed: int = 0) -> list[str]:
    """The text that follows each context, as far as its end."""
    sampling = sampling or system.recipe.sampling
    requests: list[Request] = []

    def questions() -> Iterator[Request]:
        for n, parts in enumerate(contexts):
            requests.append(Request(encoded(system, parts), sampling, seed + n))
            _room(system.recipe, len(system.layout.prompt(requests[n].parts)), 1)
            yield requests[n]

    decode(system.model, system.layout, questions())
    return [system.layout.said(r.ids, r.parts[-1].role is not None) for r in requests]


def go_on(system: System, parts: Sequence[Part], sampling: Sampling | None = None, seed: int = 0, images: int = 4,
          text: bool = True) -> list[Text | Image]:
    """What the model writes behind a document or a chat: texts and at most `images` pictures, in its own order, fewer
    where the positions that it was trained on hold no more; `text` also behind the last of them. With one image and no
    text behind it, what the assistant says next in a chat.

    Raises PromptError where there is nothing to go on from, or no room is left.
    """
    if not parts:
        raise PromptError("the conversation is empty; say something")
    layout, sampling = system.layout, sampling or system.recipe.sampling
    context = encoded(system, parts)
    room = _room(system.recipe, len(layout.prompt(context)), 1) - sampling.text_length
    room //= max(map(layout.tokens, layout.config.sizes))
    request = Request(context, sampling, seed, images=min(images, max(1, room)), text=text)
    decode(system.model, layout, [request])
    found = written(layout, request)
    ends = [n for n, part in enumerate(found) if isinstance(part, Image)]
    pictures = iter(_pictures(system, [(*context, *found[:n + 1]) for n in ends]))
    return [replace(p, content=Pixels(next(pictures)), learn=False) if isinstance(p, Image) else p for p in found]


def _room(recipe: Recipe, prompt: int, more: int) -> int:
    """The positions behind a prompt that the model was trained on. Raises PromptError where they are less than `more`.
    """
    most = max(stage.seq_len for stage in recipe.language.values())
    if prompt + more > most:
        image = f", {more} of them the image's" if more > 1 else ""
        raise PromptError(f"the prompt is {prompt} tokens long, but the model was trained on at most {most}{image}; "
                          "say less, show fewer images, or start a new conversation")
    return most - prompt
