"""One image as ids and slots, and back: both directions of one `unimm.config.tokens.ImageLayout`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.tokens import ImageLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.errors import UserError
from unimm.grammar import Fixed, Plan, make_plan
from unimm.sample import Codes, Content, Image, Latents, Level, Pixels, Sequence, Slot
from unimm.vocab import Range


class LayoutError(UserError):
    """A sample that the layout can't write, or ids that it can't read."""


@dataclass
class Ids:
    """Ids as they are written."""

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)

    def add(self, ids, learn: bool) -> None:
        self.ids += ids
        self.learn += [learn] * len(ids)

    def sequence(self) -> Sequence:
        return Sequence(np.array(self.ids, np.int32), np.array(self.learn, bool), tuple(self.slots))


class Form:
    """How images are written, or how they are read: `image` is the layout's `write` or its `read`.

    codes    every codebook's range of ids
    vectors  the placeholder of every continuous space, as a range of one id; its depth is the channels
    spelled  turns a filled template into ids

    Raises ConfigError where `image` names a space that is in neither.
    """

    def __init__(self, image: ImageLayout, config: LayoutConfig, codes: dict[str, Range], vectors: dict[str, Range],
                 spelled: Callable[[str], tuple[int, ...]]):
        self.image, self.config, self.codes, self.vectors, self._spelled = image, config, codes, vectors, spelled
        self.spaces = codes | vectors
        for level in image.levels:
            if level.space not in self.spaces:
                raise ConfigError(f"the layout writes {level.space!r}, but the recipe's codebooks and continuous "
                                  f"spaces are: {', '.join(sorted(self.spaces)) or 'none'}")
        self.plans = {size: self._make(size) for size in config.sizes}
        self.row_ends = {i for level in image.levels for i in spelled(level.row_end)}

    def _make(self, size: tuple[int, int]) -> Plan:
        return make_plan(self.image, size, self.config.pixels_per_code, self._spelled)

    def plan(self, size: tuple[int, int], free: bool) -> Plan:
        """The plan of a size; `free` says whether it may be one that isn't listed. Raises LayoutError elsewhere."""
        if size not in self.plans and not free:
            raise LayoutError(f"no image of {size[0]} x {size[1]} codes in this layout; its sizes are {self._sizes()}")
        return self.plans.get(size) or self._make(size)

    def _sizes(self) -> str:
        return ", ".join(f"{h} x {w}" for h, w in self.config.sizes[:8])

    # ------------------------------------------------------------ writing

    def write(self, image: Image, to: Ids) -> None:
        """Add the image's ids and slots. Raises LayoutError where it is of no size that this form has."""
        plan, arrays = self.fit(image)
        pixels = image.content.array if isinstance(image.content, Pixels) else None
        for n, piece in enumerate(plan.pieces):
            if isinstance(piece, Fixed):
                ends = n == len(plan.pieces) - 1 and self.config.write.stop == "count"
                marks = self.config.learn == "all" or (self.config.learn == "body" and n > 0)
                to.add(piece.ids, image.learn and marks and not ends)
                continue
            values, space = arrays[piece.level][piece.start:piece.start + piece.length], self.spaces[piece.space]
            if pixels is not None or piece.space in self.vectors or space.depth > 1:
                payload = values if pixels is None else pixels
                to.slots.append(Slot(len(to.ids), len(values), piece.space, image.learn, payload))
                to.add([space.start] * len(values), image.learn)
            else:
                to.add(space.ids_of(values[:, 0]).tolist(), image.learn)

    def fit(self, image: Image) -> tuple[Plan, list[np.ndarray]]:
        """The plan that an image is written by, and each level's (positions, depth or channels) values."""
        match image.content:
            case Pixels(array=a):
                first, *others = dict.fromkeys(plan.pieces for plan in self.plans.values())
                plan = next(iter(self.plans.values()))
                # An encoder that sees every picture at one size needs no size of its codes.
                if others or self.config.any_size:
                    pixels = self.config.pixels_per_code
                    plan = self.plan((a.shape[0] // pixels, a.shape[1] // pixels), self.config.any_size)
                return plan, [np.zeros((plan.lengths(0)[1], 1), np.int32)]
            case Latents(array=a, grid=grid):
                arrays, grids, spaces = [a], (grid,), self.vectors
            case Codes(levels=levels):
                arrays, grids, spaces = [lv.ids for lv in levels], tuple(lv.grid for lv in levels), self.codes
        other = [self.plan(grids[0], True)] if self.config.any_size and grids[0] is not None else []
        depths = [spaces[level.space].depth if level.space in spaces else 0 for level in self.image.levels]
        for plan in [*self.plans.values(), *other] if depths == [a.shape[1] for a in arrays] else ():
            limits = map(plan.lengths, range(len(depths)))
            if plan.grids == grids and all(least <= len(a) <= most for a, (least, most) in zip(arrays, limits)):
                return plan, arrays
        got = ", ".join(f"{len(a)} positions of {a.shape[1]}" + (f" in a {g[0]} x {g[1]} grid" if g else "")
                        for a, g in zip(arrays, grids))
        raise LayoutError(f"an image of {got} is none that this layout writes; its sizes are {self._sizes()}, "
                          f"its spaces {', '.join(level.space for level in self.config.write.levels)}")

    # ------------------------------------------------------------ reading

    def read(self, ids: np.ndarray, at: int, slots: dict[int, Slot]) -> tuple[int, int, Content] | None:
        """(end, first code's position, content) of the image that begins at `at`, or None where none does."""
        for plan in [*self.plans.values(), *self._other_size(ids, at)]:
            if ids[at] == plan.header[0] and (found := self._match(plan, ids, at, slots)) is not None:
                return found
        return None

    def _match(self, plan: Plan, ids: np.ndarray, at: int, slots: dict[int, Slot]):
        values: list[list[np.ndarray]] = [[] for _ in plan.grids]
        first = None
        for n, piece in enumerate(plan.pieces):
            if isinstance(piece, Fixed):
                if tuple(ids[at:at + len(piece.ids)].tolist()) == piece.ids:
                    at += len(piece.ids)
                elif not (n == len(plan.pieces) - 1 and self.config.write.stop == "count"):
                    return None
                continue
            first, space = at if first is None else first, self.spaces[piece.space]
            length = int(np.argmin(np.append(space.has(ids[at:at + piece.length]), False)))
            if length < piece.shortest:
                return None
            if at in slots:
                values[piece.level].append(slots[at].payload)
            elif piece.space in self.vectors or space.depth > 1:
                return None
            else:
                values[piece.level].append(space.codes_of(ids[at:at + length, None]).astype(np.int32))
            at += length
        if values[0][0].dtype == np.uint8:
            return at, first, Pixels(values[0][0])
        joined = [np.concatenate(level) for level in values]
        vectors = joined[0].dtype != np.int32
        return at, first, Latents(joined[0], plan.grids[0]) if vectors else Codes(tuple(map(Level, joined, plan.grids)))

    def _other_size(self, ids: np.ndarray, at: int) -> list[Plan]:
        """The plan of the image that begins at `at`, by its rows, where it may be of a size that isn't listed."""
        plan = next(iter(self.plans.values()))
        if not self.config.any_size or ids[at] != plan.header[0]:
            return []
        inside = self.spaces[self.image.levels[0].space].has(ids[at:])
        edges = np.flatnonzero(np.diff(inside, prepend=False, append=False)).reshape(-1, 2)  # rows' starts and stops
        if not len(edges):
            return []
        width, gap = edges[0, 1] - edges[0, 0], len(self._spelled(self.image.levels[0].row_end))
        follows = (np.diff(edges)[1:, 0] == width) & (edges[1:, 0] - edges[:-1, 1] == gap)
        size = (1 + int(np.argmin(np.append(follows, False))), int(width))
        return [] if size in self.plans else [self._make(size)]
