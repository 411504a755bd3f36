"""The two sides of every sampling figure, on the same weights: our loop, and transformers' `generate`.

    World    a language model, its layout, and the transformers model that shares its weights
    Ask      what is wanted of it: text, or an image of a size
    ours     ids of each Ask by our loop (the one place of tools/ that calls it)
    text, image, Growing     the same by transformers, as a person runs it today
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from tools.bench.step import stock
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.sampling import Choice, Sampling
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.generate.decode import Decoder
from unimm.generate.request import Request, drawing
from unimm.layout import Layout
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel
from unimm.sample import Part, Text
from unimm.text import BytesTokenizer

EMU3 = ImageLayout(begin="<|image start|>{h}*{w}<|image token|>", end="<|image end|>", levels=(
    LevelLayout(space="visual", row_end="<|extra_200|>", row_ends="after", after="<|extra_201|>"),))
"""An image as Emu3 writes it: its size, rows that end, markers behind."""
GREEDY = Sampling(image=Choice(temperature=0.0), text=Choice(temperature=0.0))


@dataclass(frozen=True)
class Ask:
    """An image of `size` after `parts`, guided by `guidance`; text of at most `limit` tokens where size is None."""

    parts: tuple[Part, ...]
    size: tuple[int, int] | None = None
    guidance: float = 1.0
    limit: int = 64


@dataclass(frozen=True, eq=False)
class World:
    """Ours and theirs of one model."""

    model: UnifiedModel
    layout: Layout
    released: nn.Module | None = None
    """The class of a release, where the weights are its."""

    @cached_property
    def peer(self) -> nn.Module:
        """The transformers class over the same weights, with its own attention."""
        return self.released or stock(self.model).to(self.model.device, next(self.model.parameters()).dtype).eval()

    def prompt(self, ask: Ask, unconditional: bool = False) -> torch.Tensor:
        """int64 (1, T): what transformers reads."""
        then = "image" if ask.size else "text"
        ids = self.layout.prompt(ask.parts, then, ask.size, unconditional=unconditional).ids
        return torch.from_numpy(ids).long()[None].to(self.model.device)


def layout(text: int, codes: int, sizes: tuple[tuple[int, int], ...]) -> Layout:
    """Emu3's layout over a vocabulary of `text` ids, every one of them text, and `codes` codes."""
    tokenizer = BytesTokenizer(text)
    tokenizer.controls = frozenset()
    return Layout(LayoutConfig(write=EMU3, sizes=sizes, pixels_per_code=8), tokenizer,
                  (Codebook(name="visual", size=codes),))


def world(shape: FreshBackbone, text: int = 400, codes: int = 64, sizes: tuple[tuple[int, int], ...] = ((4, 4),),
          draws: bool = True, sure: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu") -> World:
    """A fresh model whose greedy choices are far from ties: as wide a spread as trained weights have.

    draws   False: its head is nothing at codes and markers, so that transformers, which no layout keeps from them,
            writes text alone too
    sure    what an id is followed by is written into the head, far above what the layers add, so that bfloat16 chooses
            as float32 does, by whatever kernels
    """
    made = layout(text, codes, sizes)
    torch.manual_seed(0)
    with torch.device(device):
        backbone = build_backbone(shape, made.vocab, SharedTable(rows="normal"), {})
        image_input = ImageInput()
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if p.ndim > 1:
                p.normal_(0.0, 1.0 if "embed" in name else (0.3 if sure else 1.0) * p.shape[1] ** -0.5)
        head, table = backbone.get_output_embeddings().weight, backbone.get_input_embeddings().weight
        if not draws:
            head[text:] = 0
        if sure:
            start, markers = made.vocab.ranges["visual"].start, torch.arange(text, made.vocab.ranges["visual"].start)
            head[start:] = table[start:].roll(1, 0) * shape.width ** -0.5
            head[start + 7 * (markers - text) % codes] += table[markers] * shape.width ** -0.5
    model = UnifiedModel(backbone, made.vocab, image_input).to(device, dtype).eval()
    return World(model, made)


def decoder(world: World, rows: int, fast: bool = True) -> Decoder:
    """Our loop over so many rows; not `fast`: through the model's own module. One that is kept keeps its graphs.

    Raises TypeError where this family has no fast path: its figures would be another's.
    """
    if not fast:
        world.model.fast = None
    elif world.model.fast is None and (why := world.model.hasten()):
        raise TypeError(why)
    return Decoder(world.model, world.layout, rows)


def greedy(world: World, asks: Sequence[Ask], fast: bool = True) -> list[list[int]]:
    """The ids that our loop writes for each, all in one batch."""
    return run(decoder(world, len(asks), fast), [requested(ask) for ask in asks])


def run(loop: Decoder, requests: list[Request]) -> list[list[int]]:
    """The ids of all requests, brought to their end together."""
    for request in requests:
        loop.add(request)
    while loop.busy:
        loop.step()
    return [request.ids for request in requests]


def requested(ask: Ask, how: Sampling = GREEDY, seed: int = 0) -> Request:
    how = replace(how, guidance=ask.guidance, text_length=ask.limit)
    return drawing(ask.parts, how, ask.size, seed) if ask.size else Request(ask.parts, how, seed)


@torch.inference_mode()
def text(world: World, ask: Ask) -> list[int]:
    """`generate`, greedy, without anything around it."""
    ids = world.prompt(ask)
    made = world.peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ask.limit, do_sample=False,
                               use_cache=True, eos_token_id=None, pad_token_id=world.layout.pad_id)
    return made[0, ids.shape[1]:].tolist()


class Prefix:
    """Which ids may follow in an image of `size`, asked anew at every position: how Emu3's release does it
    (baaivision/Emu3, emu3/mllm/utils_emu3.py), its codes a list."""

    def __init__(self, layout: Layout, size: tuple[int, int]):
        (self.height, self.width), special = size, layout.vocab.special
        book = layout.vocab.ranges["visual"]
        self.start, self.line = special["<|image token|>"], [special["<|extra_200|>"]]
        self.behind = [[special["<|extra_201|>"]], [special["<|image end|>"]]]
        self.codes, self.image_at = list(range(book.start, book.stop)), {}

    def __call__(self, row: int, ids: torch.Tensor) -> list[int]:
        if row not in self.image_at:
            self.image_at[row] = torch.nonzero(ids == self.start, as_tuple=True)[0][0]
        at, whole = ids.shape[0] - self.image_at[row], (self.width + 1) * self.height
        if at > whole:
            return self.behind[int(at) - whole - 1]
        return self.line if at % (self.width + 1) == 0 else self.codes


@torch.inference_mode()
def image(world: World, ask: Ask) -> list[int]:
    """`generate`, greedy, with the guidance and the constraint of Emu3's image_generation.py: a second forward for the
    other branch, log-softmax and a mask over the whole vocabulary."""
    ids, free = world.prompt(ask), world.prompt(ask, unconditional=True)
    made = world.peer.generate(
        ids, attention_mask=torch.ones_like(ids), guidance_scale=ask.guidance, negative_prompt_ids=free,
        negative_prompt_attention_mask=torch.ones_like(free), prefix_allowed_tokens_fn=Prefix(world.layout, ask.size),
        max_new_tokens=10_000, do_sample=False, use_cache=True, pad_token_id=world.layout.pad_id,
        eos_token_id=world.layout.vocab.special["<|image end|>"])
    return made[0, ids.shape[1]:].tolist()


class Ours:
    """`steps(n)`: the next n greedy ids behind a context of some `length`, which is read before, by our loop."""

    def __init__(self, world: World, length: int):
        self.request = requested(Ask(context(length), limit=10_000))
        self.decoder = decoder(world, 1)
        self.decoder.add(self.request)
        self.decoder.step()

    def steps(self, n: int) -> list[int]:
        for _ in range(n):
            self.decoder.step()
        return self.request.ids[-n:]


class Growing:
    """The same by transformers' model and its growing DynamicCache."""

    def __init__(self, world: World, length: int):
        from transformers import DynamicCache

        self.world, self.cache = world, DynamicCache()
        self.last = self._read(world.prompt(Ask(context(length))))

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        out = self.world.peer(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def steps(self, n: int) -> list[int]:
        found = []
        while len(found) < n:
            self.last = self._read(self.last)
            found.append(int(self.last))
        return found


def context(length: int) -> tuple[Part, ...]:
    """Text of so many ids."""
    return (Text(bytes(np.random.default_rng(0).integers(32, 127, length, np.uint8)).decode()),)


def caption(n: int = 0) -> tuple[Part, ...]:
    """A prompt of some twenty ids, another for each n."""
    return (Text(f"{n} red rings on a wall"),)


def edit(world: World, n: int, size: tuple[int, int]) -> tuple[Part, ...]:
    """A picture and what to do with it."""
    from unimm.sample import Codes, Image

    codes = np.random.default_rng(n).integers(0, world.layout.vocab.ranges["visual"].codes, size)
    picture = Image(Codes.of_grid(codes), role="user")
    return picture, replace(caption(n)[0], role="user")
