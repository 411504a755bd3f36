"""What a written image is, position by position, and which ids may come next.

A `Plan` spells out one image of one size as fixed ids and runs of codes. All plans of a layout
together make an `Automaton`: a table from (state, id) to state, so that any number of rows, each at
its own place, advance in one indexing operation.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.tokens import Grid, ImageLayout, LevelLayout, Line, UpTo
from unimm.vocab import Range, Vocab, fill


@dataclass(frozen=True)
class Fixed:
    """Ids that stand as they are: markers, and literal text such as Emu3's "64*64"."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """`length` positions of a level from its position `start`; below `shortest` the image may not end."""

    level: int
    space: str
    start: int
    length: int
    shortest: int


@dataclass(frozen=True)
class Plan:
    """One image of one size: pieces in order, and each level's grid. The first piece is fixed."""

    size: tuple[int, int]
    pieces: tuple[Fixed | Run, ...]
    grids: tuple[tuple[int, int] | None, ...]

    @property
    def header(self) -> tuple[int, ...]:
        """The ids before the first code: what a text-to-image prompt ends with."""
        return self.pieces[0].ids

    def lengths(self, level: int) -> tuple[int, int]:
        """The least and the most positions of a level."""
        runs = [p for p in self.pieces if isinstance(p, Run) and p.level == level]
        return sum(r.shortest for r in runs), sum(r.length for r in runs)


def make_plan(image: ImageLayout, size: tuple[int, int], pixels_per_code: int,
              ids: Callable[[str], tuple[int, ...]]) -> Plan:
    """Spell out an image of `size` (rows, columns); `ids` turns a filled template into ids."""
    def spelled(template: str) -> tuple[int, ...]:
        return ids(fill(template, size, pixels_per_code))

    pieces: list[Fixed | Run] = [Fixed(spelled(image.begin))]
    grids = []
    for number, level in enumerate(image.levels):
        grid, runs = _level(number, level, size, spelled(level.row_end))
        pieces += [Fixed(spelled(level.before)), *runs, Fixed(spelled(level.after))]
        grids.append(grid)
    pieces.append(Fixed(spelled(image.end)))
    joined: list[Fixed | Run] = []  # neighbouring fixed pieces as one, empty ones left out
    for fixed, some in groupby((p for p in pieces if p != Fixed(())), lambda piece: isinstance(piece, Fixed)):
        same = list(some)
        joined += [Fixed(tuple(i for piece in same for i in piece.ids))] if fixed else same
    return Plan(size, tuple(joined), tuple(grids))


def _level(number: int, level: LevelLayout, size, row_end: tuple[int, ...]):
    match level.shape:
        case Line(length=n):
            return None, [Run(number, level.space, 0, n, n)]
        case UpTo(longest=n, shortest=k):
            return None, [Run(number, level.space, 0, n, k)]
        case Grid(scale=s):
            h, w = round(size[0] * s), round(size[1] * s)
    if level.row_ends == "none":
        return (h, w), [Run(number, level.space, 0, h * w, h * w)]
    rows = [piece for y in range(h) for piece in (Run(number, level.space, y * w, w, w), Fixed(row_end))]
    return (h, w), rows if level.row_ends == "after" else rows[:-1]


class Automaton:
    """Which ids may follow, for many rows at once.

    States are integers; TEXT is between images, DONE after an end marker. `kinds[k]` names what the
    ids of `sets[k]` are ("text", "marker", or a codebook's name), so that a sampler can ask the
    right head and the right temperature. The set `no_image` is that of text where no image may begin.

    Of every state:

    follows   int64: the one state behind it, whichever allowed id is taken; -1 where that depends on the id
    within    int64: the same, but -1 where an image ends there or its header does
    forced    int64: the one allowed id, or -1; `sure` where there is one and `within` too
    codes     int64: how many codes of its image stand before it
    stops     bool: whether a text ends there, an image's header, or an image but for its `endings`
    headers   the size of the image whose header ends there, of those where one does
    endings   the ids up to the image's end, of those where no other may come any more

    An id that stands for codes or a latent still to be drawn (`drawn` names their spaces) is no id without a choice.
    """

    TEXT, DONE = 0, 1

    def __init__(self, vocab: Vocab, plans: list[Plan], ends: list[int], pad: int, by_count: bool,
                 spaces: dict[str, Range], drawn: Collection[str] = ()):
        pieces = [piece for plan in plans for piece in plan.pieces]
        used = sorted({piece.space for piece in pieces if isinstance(piece, Run)})
        fixed = {i for piece in pieces if isinstance(piece, Fixed) for i in piece.ids}
        self._keys = ["text", *used, *sorted(fixed | {*ends, pad})]  # what a label stands for
        self._labels = {key: label for label, key in enumerate(self._keys)}
        self.label_of = np.full(vocab.size, -1, np.int32)
        self.label_of[vocab.is_text] = 0
        for key, label in self._labels.items():
            if key in spaces:
                self.label_of[spaces[key].start:spaces[key].stop] = label
            elif key != "text":
                self.label_of[key] = label
        self._edges: list[dict[int, int]] = [{}, {}]
        self._codes = [0, 0]
        for plan in plans:
            self._insert(plan, by_count)
        text = self._edges[self.TEXT]
        for i in fixed:
            if vocab.is_text[i]:
                text.setdefault(self._labels[i], self.TEXT)
        text[0] = self.TEXT
        text.update({self._labels[end]: self.DONE for end in ends})
        self._edges[self.DONE][self._labels[pad]] = self.DONE
        self._tabulate()
        self.forced[np.array([kind in drawn for kind in self.kinds])[self.set_of]] = -1
        self.headers = {self.after(plan.header): plan.size for plan in plans[::-1]}
        states, heads = np.arange(len(self.table)), [self.DONE, *self.headers]
        self.within = np.where((self.follows > self.DONE) & ~np.isin(self.follows, heads), self.follows, -1)
        self.endings: dict[int, tuple[int, ...]] = {self.TEXT: ()}
        for state in np.flatnonzero(self.forced >= 0)[::-1].tolist():  # what follows a state was made after it
            if (following := int(self.follows[state])) in self.endings:
                self.endings[state] = (int(self.forced[state]), *self.endings[following])
        del self.endings[self.TEXT]
        self.stops = np.isin(states, [*heads, *self.endings])
        self.sure = (self.within >= 0) & (self.forced >= 0)
        begins = [plan.header[0] for plan in plans if not vocab.is_text[plan.header[0]]]
        self.no_image = len(self.sets)
        self.sets.append(np.setdiff1d(self.sets[self.set_of[self.TEXT]], begins))
        self.kinds.append("text")
        self.is_text = np.array(self.kinds) == "text"

    def _insert(self, plan: Plan, by_count: bool) -> None:
        """Follow or make the edges of an image; the last one leads back to TEXT."""
        pieces = plan.pieces[:-1] if by_count and isinstance(plan.pieces[-1], Fixed) else plan.pieces
        steps = [(p, k) for p in pieces for k in range(len(p.ids) if isinstance(p, Fixed) else p.length)]
        state, early = self.TEXT, []
        for n, (piece, k) in enumerate(steps):
            is_code, last, edges = isinstance(piece, Run), n == len(steps) - 1, self._edges[state]
            label = self._labels[piece.space if is_code else piece.ids[k]]
            if label not in edges:
                edges[label] = self.TEXT if last else len(self._edges)
                if not last:
                    self._edges.append({})
                    self._codes.append(self._codes[state] + is_code)
            elif (edges[label] == self.TEXT) != last:
                raise ConfigError("one size's image is the beginning of another's; add row ends or a size")
            if not is_code:
                for shorter in early:
                    self._edges[shorter][label] = edges[label]
                early = []
            elif k >= piece.shortest:
                early.append(state)
            state = edges[label]

    def _tabulate(self) -> None:
        self.table = np.full((len(self._edges), len(self._keys)), -1, np.int32)
        for state, edges in enumerate(self._edges):
            self.table[state, list(edges)] = list(edges.values())
        self.codes = np.array(self._codes)
        open_to = self.table >= 0
        numbers: dict[bytes, int] = {}
        self.set_of = np.array([numbers.setdefault(labels.tobytes(), len(numbers)) for labels in open_to])
        allowed = np.array([np.frombuffer(labels, bool) for labels in numbers])  # (sets, labels)
        self.sets = [np.flatnonzero(labels[self.label_of] & (self.label_of >= 0)) for labels in allowed]
        first = [self._keys[label] for label in allowed.argmax(1)]  # text before spaces before markers
        self.kinds = [key if isinstance(key, str) else "marker" for key in first]
        last = self.table.max(1)
        self.follows = np.where((self.table == last[:, None]).sum(1) == open_to.sum(1), last, -1)
        self.forced = np.array([ids[0] if len(ids) == 1 else -1 for ids in self.sets])[self.set_of]

    def advance(self, states: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The states (B,) after the ids (B,). Raises ValueError for an id that was not allowed."""
        labels = self.label_of[ids]
        following = np.where(labels >= 0, self.table[states, np.maximum(labels, 0)], -1)
        if (following < 0).any():
            row = int(np.argmax(following < 0))
            raise ValueError(f"id {int(np.asarray(ids)[row])} in row {row} may not stand there")
        return following

    def after(self, ids) -> int:
        """The state behind an image's header."""
        state = np.array([self.TEXT])
        for i in ids:
            state = self.advance(state, np.array([i]))
        return int(state[0])
