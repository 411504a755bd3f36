"""The values that flow: what a dataset yields, what a layout writes, what a model reads.

    Sample (parts)  --render-->  Sequence (ids + slots)  --pack-->  Batch (rows)

A `Sample` is an ordered list of parts, `Text` or `Image`, each either *learned* (the model writes
it) or *context* (the model reads it). Captioning, text-to-image, question answering, editing,
interleaved documents and chat are all samples; no task has a class of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from unimm.errors import UserError

Role = Literal["system", "user", "assistant"]


class SampleError(UserError):
    """A sample that can't be what it claims to be; the message names the value and the remedy."""


@dataclass(frozen=True)
class Text:
    """A piece of text. `role` is the speaker in a chat, or None in a plain document."""

    text: str
    learn: bool = False
    role: Role | None = None

    def __post_init__(self):
        if not self.text:
            raise SampleError("a Text part is empty; leave the part out instead")


class _Arrays:
    """Equal where all fields are, arrays as a whole."""

    def __eq__(self, other):
        return type(self) is type(other) and all(map(np.array_equal, vars(self).values(), vars(other).values()))


@dataclass(frozen=True, eq=False)
class Pixels(_Arrays):
    """An image as numbers: uint8 (height, width, 3), RGB."""

    array: np.ndarray

    def __post_init__(self):
        a = self.array
        if a.dtype != np.uint8 or a.ndim != 3 or a.shape[2] != 3 or 0 in a.shape:
            raise SampleError(f"pixels must be uint8 (height, width, 3), got {a.dtype} {a.shape}")


@dataclass(frozen=True, eq=False)
class Level(_Arrays):
    """One level of codes: `ids` int32 (positions, depth); `grid` (rows, columns) if it has one."""

    ids: np.ndarray
    grid: tuple[int, int] | None = None

    def __post_init__(self):
        ids = np.ascontiguousarray(self.ids, dtype=np.int32)
        if ids.ndim != 2 or 0 in ids.shape:
            raise SampleError(f"codes must be (positions, depth), got shape {ids.shape}")
        if self.grid is not None and self.grid[0] * self.grid[1] != len(ids):
            raise SampleError(f"a grid of {self.grid} holds {self.grid[0] * self.grid[1]} positions, got {len(ids)}")
        object.__setattr__(self, "ids", ids)


@dataclass(frozen=True)
class Codes:
    """What a discrete image tokenizer yields: one or more levels, in the order they are written.

    A VQ grid is one level of depth 1; 1-D tokens are a level without a grid; residual or product
    codes are a level of depth d; semantic-then-pixel codes are two levels.
    """

    levels: tuple[Level, ...]

    @staticmethod
    def of_grid(ids) -> "Codes":
        """Codes of one level and depth 1 from a (rows, columns) array."""
        ids = np.asarray(ids)
        return Codes((Level(ids.reshape(-1, 1), (int(ids.shape[0]), int(ids.shape[1]))),))


@dataclass(frozen=True, eq=False)
class Latents(_Arrays):
    """What a continuous tokenizer or a vision encoder yields: float32 (positions, channels)."""

    array: np.ndarray
    grid: tuple[int, int] | None = None

    def __post_init__(self):
        if self.array.ndim != 2 or 0 in self.array.shape:
            raise SampleError(f"latents must be (positions, channels), got shape {self.array.shape}")


Content = Pixels | Codes | Latents


@dataclass(frozen=True)
class Image:
    """An image at one stage of its way: pixels as found, codes or latents once tokenized."""

    content: Content
    learn: bool = False
    role: Role | None = None
    seen: bytes | None = None
    """The same image as PNG, as a vision encoder sees it, where images are read otherwise than they are written."""


Part = Text | Image


@dataclass(frozen=True)
class Sample:
    """Parts in reading order; adjacent texts of the same speaker and use become one."""

    parts: tuple[Part, ...]

    def __post_init__(self):
        if not self.parts:
            raise SampleError("a sample has no parts")
        if len({part.role is None for part in self.parts}) > 1:
            raise SampleError("some parts have a role and some have none; a sample is a chat or a document")
        object.__setattr__(self, "parts", joined(self.parts))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(p for p in self.parts if isinstance(p, Image))


def sample(*parts: Part) -> Sample:
    return Sample(parts)


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with adjacent texts of the same speaker and use as one."""
    found: list[Part] = []
    for (said, learn, role), run in groupby(parts, lambda part: (isinstance(part, Text), part.learn, part.role)):
        same = list(run)
        found += [Text("".join(part.text for part in same), learn, role)] if said else same
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Slot:
    """A run of positions whose payload is not (only) an id.

    `space` names the codebook or the continuous space; `payload` is int32 (length, depth) codes,
    float32 (length, channels) latents or features, or the pixels still to be encoded in the step.
    """

    start: int
    length: int
    space: str
    learn: bool
    payload: np.ndarray


@dataclass(frozen=True, eq=False)
class Sequence:
    """One document as the model sees it.

    ids     int32 (T,)  what is read
    learn   bool (T,)   whether the id at this position is a target (predicted from those before)
    slots               payloads beside the ids, none for plain codes in a shared table
    """

    ids: np.ndarray
    learn: np.ndarray
    slots: tuple[Slot, ...] = ()

    def __post_init__(self):
        if self.ids.shape != self.learn.shape or self.ids.ndim != 1:
            raise SampleError(f"ids {self.ids.shape} and learn {self.learn.shape} must be one equal length")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Pictures:
    """A batch of pictures, uint8 (B, H, W, 3), and what is said of each; "" where nothing is."""

    pixels: np.ndarray
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice) -> "Pictures":
        return Pictures(self.pixels[rows], self.texts[rows])


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed rows: several documents side by side, kept apart by `document`.

    ids        int64 (B, T)  padded with `pad`; never a negative number
    targets    int64 (B, T)  the id that follows in the same document; only read where `learn`
    learn      bool (B, T)   whether the *target* at this position is supervised
    position   int64 (B, T)  counts from 0 in every document
    document   int64 (B, T)  counts from 1 in every row; 0 is padding
    image      bool (B, T)   whether the target is an image position, for separate losses
    slots                    (row, slot), `start` counted in the row
    samples                  how many documents, so that none is lost uncounted
    lengths                  of every row's documents in order; says what `document` says where it can be read without
                             a GPU being waited for. Empty: nobody counted
    """

    ids: np.ndarray
    targets: np.ndarray
    learn: np.ndarray
    position: np.ndarray
    document: np.ndarray
    image: np.ndarray
    slots: tuple[tuple[int, Slot], ...] = ()
    samples: int = 0
    lengths: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of the rows, as a batch."""
        first, stop, _ = rows.indices(len(self))
        slots = tuple((row - first, slot) for row, slot in self.slots if first <= row < stop)
        arrays = (self.ids, self.targets, self.learn, self.position, self.document, self.image)
        return Batch(*(array[rows] for array in arrays), slots, int(self.document[rows].max(1, initial=0).sum()),
                     self.lengths[rows])
