"""Ids back to what they say: characters, markers of turns, and whole images.

The inverse of what `unimm.layout` writes; `unimm.turns` then says which words are whose.
"""

import numpy as np

from unimm.config.tokens import Layout as LayoutConfig
from unimm.errors import UserError
from unimm.grammar import Fixed, Plan, Run, make_plan
from unimm.sample import Codes, Image, Latents, Level, Pixels, Slot
from unimm.text import TextTokenizer
from unimm.turns import Atom, Turns
from unimm.vocab import Vocab


class LayoutError(UserError):
    """A sample that the layout can't write, or ids that it can't read."""


class Reader:
    """What reads the ids of one layout. `template` spells out a filled template as ids."""

    def __init__(self, config: LayoutConfig, vocab: Vocab, text: TextTokenizer, plans: tuple[dict, dict],
                 placeholders: dict[str, int], turns: Turns, template):
        self.config, self.vocab, self.text, self.template = config, vocab, text, template
        self.write_plans, self.read_plans = plans
        self.placeholders = placeholders
        self.is_text = vocab.is_text
        self.skipped = (vocab.special[config.bos], vocab.special[config.pad])
        marks = [p for side in (turns.opens, turns.closes) for pieces in side.values() for p in pieces]
        self.turning = np.isin(np.arange(vocab.size), [turns.eos, *(p for p in marks if isinstance(p, int))])

    def atoms(self, ids: np.ndarray, learn: np.ndarray, payloads: dict[int, Slot]) -> list[Atom]:
        """Characters, whole images, and the markers of turns."""
        atoms: list[Atom] = []
        at, is_text = 0, self.is_text
        while at < len(ids):
            if self.turning[ids[at]]:
                atoms.append(Atom(int(ids[at]), bool(learn[at])))
                at += 1
            elif ids[at] in self.skipped:
                at += 1
            elif (found := self._read_image(ids, at, payloads, learn)) is not None:
                at, image = found
                atoms.append(Atom(image, image.learn))
            elif is_text[ids[at]]:
                end = at
                while end < len(ids) and is_text[ids[end]] and learn[end] == learn[at]:
                    end += 1
                atoms += [Atom(c, bool(learn[at])) for c in self.text.decode(ids[at:end].tolist())]
                at = end
            else:
                raise LayoutError(f"position {at} holds {self.name(int(ids[at]))}, "
                                  "where neither text nor a whole image begins")
        return atoms

    @staticmethod
    def _stands(marker: tuple[int, ...], ids: np.ndarray, at: int) -> bool:
        return bool(marker) and tuple(ids[at:at + len(marker)].tolist()) == marker

    def _read_image(self, ids, at: int, payloads, learn) -> tuple[int, Image] | None:
        for plans in (self.write_plans, self.read_plans):
            for plan in [*plans.values(), *self._other_size(plans, ids, at)]:
                if ids[at] == plan.header[0] and (read := self._match(plan, ids, at, payloads)) is not None:
                    end, values, first = read
                    return end, Image(self._content(plan, values), bool(learn[first]))
        return None

    def _match(self, plan: Plan, ids, at: int, payloads):
        """(end, values by level, first code's position) if the plan's image stands at `at`, else None."""
        values: list[list[np.ndarray]] = [[] for _ in plan.grids]
        first = None
        for n, piece in enumerate(plan.pieces):
            if isinstance(piece, Fixed):
                if self._stands(piece.ids, ids, at):
                    at += len(piece.ids)
                elif not (n == len(plan.pieces) - 1 and self.config.write.stop == "count"):
                    return None
                continue
            first = at if first is None else first
            length = self._run_length(piece, ids, at)
            if length < piece.shortest:
                return None
            if at in payloads:
                values[piece.level].append(payloads[at].payload)
            elif piece.space in self.placeholders or self.vocab.ranges[piece.space].depth > 1:
                return None
            else:
                codes = self.vocab.ranges[piece.space].codes_of(ids[at:at + length, None])
                values[piece.level].append(codes.astype(np.int32))
            at += length
        return at, values, first

    def _run_length(self, run: Run, ids, at: int) -> int:
        """How many positions from `at` hold the run's space, at most its length."""
        window = ids[at:at + run.length]
        if run.space in self.placeholders:
            inside = window == self.placeholders[run.space]
        else:
            r = self.vocab.ranges[run.space]
            inside = (window >= r.start) & (window < r.stop)
        return len(window) if inside.all() else int(np.argmin(inside))

    def plan(self, reads: bool, size: tuple[int, int]) -> Plan:
        """The plan of any size, also of one that the layout doesn't list."""
        image = self.config.read if reads and self.config.read is not None else self.config.write
        return make_plan(image, size, self.config.pixels_per_code, self.template)

    def _other_size(self, plans: dict, ids, at: int) -> list[Plan]:
        """The plan of the image that begins at `at`, by its rows, where it may be of a size that isn't listed."""
        first = next(iter(plans.values()))
        if not self.config.any_size or ids[at] != first.header[0]:
            return []
        run = next(piece for piece in first.pieces if isinstance(piece, Run))
        place = self.vocab.ranges[run.space]
        inside = (ids[at:] >= place.start) & (ids[at:] < place.stop)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]]).astype(int)))
        if not len(edges):
            return []
        width = int(edges[1] - edges[0])
        gap = len(self.template((self.config.read or self.config.write).levels[0].row_end))
        rows = 1
        while 2 * rows < len(edges) and edges[2 * rows] - edges[2 * rows - 1] == gap \
                and edges[2 * rows + 1] - edges[2 * rows] == width:
            rows += 1
        size = (rows, width)
        return [] if size in plans else [self.plan(plans is self.read_plans, size)]

    @staticmethod
    def _content(plan: Plan, values) -> Codes | Latents | Pixels:
        first = values[0][0]
        if first.dtype == np.uint8:
            return Pixels(first)
        if first.dtype != np.int32:
            return Latents(np.concatenate(values[0]), plan.grids[0])
        return Codes(tuple(Level(np.concatenate(v), grid) for v, grid in zip(values, plan.grids)))

    def name(self, i: int) -> str:
        """An id in words: the marker's name, the codebook and code, or the text."""
        for marker, special in self.vocab.special.items():
            if special == i:
                return marker
        for r in self.vocab.ranges.values():
            if r.start <= i < r.stop:
                return f"{r.name}:{r.codes_of(np.array([i]))[0]}"
        if i in self.vocab.controls:
            return f"id {i}"
        return repr(self.text.decode([i]))
