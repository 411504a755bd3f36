"""Sample <-> Sequence: the only file that knows where an image begins.

    render   Sample -> Sequence     what training reads, with what is learned marked
    prompt   parts  -> Sequence     the same up to where the model goes on
    parse    ids    -> Sample       what a sequence says
    automaton                       which ids may come next

All four derive from one declarative `unimm.config.tokens.Layout`, so a release's format is data.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.tokens import Codebook, Continuous
from unimm.config.tokens import Layout as LayoutConfig
from unimm.errors import UserError
from unimm.grammar import Automaton, Fixed, Plan, Run, make_plan
from unimm.pictures import from_png
from unimm.sample import Codes, Image, Latents, Level, Part, Pixels, Role, Sample, Sequence, Slot, Text, sample
from unimm.text import TextTokenizer
from unimm.vocab import MARKER, Vocab, build_vocab, markers

ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class LayoutError(UserError):
    """A sample that the layout can't write, or ids that it can't read."""


@dataclass
class _Writer:
    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    role: Role | None = None

    def add(self, ids, learn: bool = False) -> None:
        self.ids += ids
        self.learn += [learn] * len(ids)

    def sequence(self) -> Sequence:
        return Sequence(np.array(self.ids, np.int32), np.array(self.learn, bool), tuple(self.slots))


class Layout:
    """A layout bound to its vocabulary and text tokenizer.

    Raises ConfigError where the description names a codebook or marker that does not exist.
    """

    def __init__(self, config: LayoutConfig, text: TextTokenizer, codebooks: tuple[Codebook, ...],
                 continuous: tuple[Continuous, ...] = (), special_ids: dict[str, int] | None = None):
        self.config = config
        self.text = text
        self.continuous = {c.name: c for c in continuous}
        self.vocab: Vocab = build_vocab(text.size, markers(config, continuous), special_ids or {}, codebooks)
        spaces = set(self.vocab.ranges) | set(self.continuous)
        for image in (config.write, config.read or config.write):
            for level in image.levels:
                if level.space not in spaces:
                    raise ConfigError(f"the layout writes {level.space!r}, but the recipe's codebooks and continuous "
                                      f"spaces are: {', '.join(sorted(spaces)) or 'none'}")
        self.placeholders = {c.name: self.vocab.special[c.placeholder] for c in continuous}
        plan = [make_plan(config.write, size, config.pixels_per_code, self._template) for size in config.sizes]
        self.write_plans: dict[tuple[int, int], Plan] = {p.size: p for p in plan}
        if len({p.pieces for p in plan}) < len(plan):
            raise ConfigError("two of the layout's sizes are written alike; add row ends or a size header")
        read = config.read or config.write
        self.read_plans = {s: make_plan(read, s, config.pixels_per_code, self._template) for s in config.sizes}
        self.bos, self.eos, self.pad_id = (self.vocab.special[m] for m in (config.bos, config.eos, config.pad))
        turns = {role: getattr(config.chat, role) for role in ROLES}
        self._opens = {role: self._template(before) for role, (before, _) in turns.items()}
        self._closes = {role: self._template(after) for role, (_, after) in turns.items()}

    def _template(self, template: str) -> tuple[int, ...]:
        """Ids of a filled template: markers by name, the text between them as text."""
        ids, end = [], 0
        for found in MARKER.finditer(template):
            ids += self.text.encode(template[end:found.start()]) if found.start() > end else []
            ids.append(self.vocab.special[found.group()])
            end = found.end()
        return tuple(ids + (self.text.encode(template[end:]) if end < len(template) else []))

    # ------------------------------------------------------------ writing

    def render(self, sample: Sample, unconditional: bool = False) -> Sequence:
        """The sample as ids and slots. `unconditional` gives the context its form for guidance.

        Raises LayoutError where an image is of no size that the layout writes.
        """
        split = self._last_image(sample) if unconditional else 0
        w = self._context(sample.parts[:split], unconditional, sample.parts[split].role) if unconditional \
            else self._context((), False, None)
        for part in sample.parts[split:]:
            self._part(w, part)
        learned = sample.parts[-1].learn
        if w.role is not None:
            w.add(self._closes[w.role], learned)
        w.add((self.eos,), learned)
        return w.sequence()

    def prompt(self, parts: tuple[Part, ...], then: str = "text", size: tuple[int, int] | None = None,
               unconditional: bool = False) -> Sequence:
        """The parts as context, up to where the model writes `then`: "text" (or whatever it chooses) or "image"."""
        role = "assistant" if parts and parts[-1].role is not None else None
        w = self._context(parts, unconditional, role)
        if role is not None:
            self._turn(w, role, False)
        if then == "image":
            w.add(self._plan_of_size(size or self.config.sizes[0]).header)
        return w.sequence()

    def _context(self, parts: tuple[Part, ...], unconditional: bool, role: Role | None) -> _Writer:
        """The beginning of a sequence with `parts` read; both training and sampling forget them here."""
        w = _Writer()
        w.add((self.bos,))
        for part in parts:
            self._part(w, part)
        if not unconditional:
            return w
        match self.config.unconditional:
            case "drop":
                w = _Writer()
                w.add((self.bos,))
            case "pad":
                if role is not None:
                    self._turn(w, role, False)
                w = _Writer([self.bos] + [self.pad_id] * (len(w.ids) - 1), w.learn, [], w.role)
            case "replace":
                w = _Writer()
                w.add((self.bos,))
                w.add(self._template(self.config.replacement))
        return w

    def _last_image(self, sample: Sample) -> int:
        last = sample.parts[-1]
        if not (isinstance(last, Image) and last.learn):
            raise LayoutError("only a sample that ends in a learned image has an unconditional form")
        return len(sample.parts) - 1

    def _turn(self, w: _Writer, role: Role | None, learned: bool) -> None:
        if role == w.role:
            return
        if w.role is not None:
            w.add(self._closes[w.role], learned)
        if role is not None:
            w.add(self._opens[role])
        w.role = role

    def _part(self, w: _Writer, part: Part) -> None:
        self._turn(w, part.role, bool(w.learn and w.learn[-1]))
        match part:
            case Text():
                w.add(self.text.encode(part.text), part.learn)
            case Image():
                self._image(w, part)

    def _image(self, w: _Writer, image: Image) -> None:
        image = self._as_read(image)
        plan, arrays = self._fit(image)
        pixels = image.content.array if isinstance(image.content, Pixels) else None
        for n, piece in enumerate(plan.pieces):
            if isinstance(piece, Fixed):
                ends = n == len(plan.pieces) - 1 and self.config.write.stop == "count"
                w.add(piece.ids, image.learn and self.config.learn == "all" and not ends)
                continue
            values = arrays[piece.level][piece.start:piece.start + piece.length]
            in_slot = pixels is not None or values.dtype != np.int32 or values.shape[1] > 1
            if in_slot:
                payload = values if pixels is None else pixels
                w.slots.append(Slot(len(w.ids), len(values), piece.space, image.learn, payload))
                w.add([self._placeholder(piece.space)] * len(values), image.learn)
            else:
                w.add((values[:, 0] + self.vocab.ranges[piece.space].start).tolist(), image.learn)

    def _placeholder(self, space: str) -> int:
        return self.placeholders[space] if space in self.placeholders else self.vocab.ranges[space].start

    def _as_read(self, image: Image) -> Image:
        """A context image as its pixels where features of them are read. Raises LayoutError where it has none."""
        if image.learn or self.config.read is None or not isinstance(image.content, Codes):
            return image
        if self.config.read.levels[0].space not in self.continuous:
            return image
        if image.seen is None:
            raise LayoutError("this layout reads an image as features, but the sample holds its codes alone; encode "
                              "the data again with this recipe, or give the picture itself")
        return replace(image, content=Pixels(from_png(image.seen)), seen=None)

    def _fit(self, image: Image) -> tuple[Plan, list[np.ndarray]]:
        """The plan an image is written by, and each level's (positions, depth or channels) values."""
        plans = self.write_plans if image.learn or self.config.read is None else self.read_plans
        match image.content:
            case Pixels(array=a):
                size = (a.shape[0] // self.config.pixels_per_code, a.shape[1] // self.config.pixels_per_code)
                # An encoder that sees every picture at one size needs no size of its codes.
                alike = len({p.pieces for p in plans.values()}) == 1
                plan = next(iter(plans.values())) if alike else plans[self._plan_of_size(size).size]
                return plan, [np.zeros((plan.lengths(0)[1], 1), np.int32)]
            case Latents(array=a, grid=grid):
                shapes, arrays = [(len(a), grid, a.shape[1])], [a]
            case Codes(levels=levels):
                shapes, arrays = [(len(v.ids), v.grid, v.ids.shape[1]) for v in levels], [v.ids for v in levels]
        for plan in plans.values():
            if self._fits(plan, shapes, isinstance(image.content, Codes)):
                return plan, arrays
        got = ", ".join(f"{n} positions of {d}" + (f" in a {g[0]} x {g[1]} grid" if g else "") for n, g, d in shapes)
        known = ", ".join(f"{h} x {w}" for h, w in self.config.sizes[:8])
        raise LayoutError(f"an image of {got} is none that this layout writes; its sizes are {known}, "
                          f"its spaces {', '.join(p.space for p in self.config.write.levels)}")

    def _fits(self, plan: Plan, shapes, discrete: bool) -> bool:
        runs = {p.level: p.space for p in plan.pieces if isinstance(p, Run)}
        if len(shapes) != len(plan.grids) or len(runs) != len(shapes):
            return False
        for level, (n, grid, depth) in enumerate(shapes):
            least, most = plan.lengths(level)
            space = runs[level]
            if discrete:
                right = space in self.vocab.ranges and self.vocab.ranges[space].depth == depth
            else:
                right = space in self.continuous and self.continuous[space].channels == depth
            if not (right and grid == plan.grids[level] and least <= n <= most):
                return False
        return True

    def _plan_of_size(self, size: tuple[int, int]) -> Plan:
        if size not in self.write_plans:
            known = ", ".join(f"{h} x {w}" for h, w in self.config.sizes[:8])
            raise LayoutError(f"no image of {size[0]} x {size[1]} codes in this layout; its sizes are {known}")
        return self.write_plans[size]

    # ------------------------------------------------------------ reading

    def parse(self, ids, learn=None, slots: tuple[Slot, ...] = ()) -> Sample:
        """What a sequence says. `learn` and `slots` as in Sequence; ids of images sampled by count need no end.

        Raises LayoutError where an image is cut off or a marker stands alone.
        """
        ids = np.asarray(ids, np.int64)
        learn = np.zeros(len(ids), bool) if learn is None else np.asarray(learn, bool)
        payloads = {s.start: s for s in slots}
        parts: list[Part] = []
        role, at, is_text = None, 0, self.vocab.is_text
        while at < len(ids) and ids[at] != self.eos:
            if ids[at] in (self.bos, self.pad_id):
                at += 1
            elif role is not None and self._stands(self._closes[role], ids, at):
                at, role = at + len(self._closes[role]), None
            elif (opened := next((r for r in ROLES if self._stands(self._opens[r], ids, at)), None)) is not None:
                at, role = at + len(self._opens[opened]), opened
            elif (found := self._read_image(ids, at, payloads, learn, role)) is not None:
                at, image = found
                parts.append(image)
            elif is_text[ids[at]]:
                end = at
                while end < len(ids) and is_text[ids[end]] and learn[end] == learn[at]:
                    end += 1
                parts.append(Text(self.text.decode(ids[at:end].tolist()), bool(learn[at]), role))
                at = end
            else:
                raise LayoutError(f"position {at} holds {self.name(int(ids[at]))}, "
                                  "where neither text nor a whole image begins")
        return sample(*parts)

    @staticmethod
    def _stands(marker: tuple[int, ...], ids: np.ndarray, at: int) -> bool:
        return bool(marker) and tuple(ids[at:at + len(marker)].tolist()) == marker

    def _read_image(self, ids, at: int, payloads, learn, role) -> tuple[int, Image] | None:
        for plans in (self.write_plans, self.read_plans):
            for plan in plans.values():
                if ids[at] == plan.header[0] and (read := self._match(plan, ids, at, payloads)) is not None:
                    end, values, first = read
                    return end, Image(self._content(plan, values), bool(learn[first]), role)
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
                codes = ids[at:at + length, None] - self.vocab.ranges[piece.space].start
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
                return f"{r.name}:{i - r.start}"
        return repr(self.text.decode([i]))

    def automaton(self) -> Automaton:
        """Which ids may come next, over all sizes this layout writes."""
        ends = [self.eos] + [ids[0] for role, ids in self._closes.items() if role == "assistant" and ids]
        return Automaton(self.vocab, list(self.write_plans.values()), ends, self.pad_id,
                         self.config.write.stop == "count", self.placeholders)
