"""Sample <-> Sequence.

    render   Sample -> Sequence     what training reads, with what is learned marked
    prompt   parts  -> Sequence     the same up to where the model goes on
    parse    ids    -> Sample       what a sequence says (`unimm.parse` and `unimm.turns`)
    automaton                       which ids may come next (`unimm.grammar`)

All four derive from one declarative `unimm.config.tokens.Layout`, so a release's format is data.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.tokens import Codebook, Continuous
from unimm.config.tokens import Layout as LayoutConfig
from unimm.grammar import Automaton, Fixed, Plan, Run, make_plan
from unimm.parse import LayoutError, Reader
from unimm.pictures import from_png
from unimm.sample import Codes, Image, Latents, Part, Pixels, Role, Sample, Sequence, Slot, Text, sample
from unimm.text import TextTokenizer
from unimm.turns import Turns
from unimm.vocab import MARKER, Vocab, build_vocab, fill, markers


@dataclass
class _Writer:
    """Ids as they are written. Text that stands together is encoded together, as a release's own template is."""

    text: TextTokenizer
    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    role: Role | None = None
    images: set[int] = field(default_factory=set)
    """Where images stand."""
    last: Part | None = None
    """The part before, in the turn that is being written."""
    learned: bool = False
    """Whether what was written last is learned."""
    forgets: bool = False
    """Whether the turns before are forgotten for guidance, so that the assistant's has none before it."""
    _said: str = ""

    def write(self, pieces: list[str | int], learn: bool = False) -> None:
        for piece in pieces:
            if isinstance(piece, int):
                self.add((piece,), learn)
            elif self._said and learn != self.learned:
                self.flush()
            if isinstance(piece, str) and piece:
                self._said, self.learned = self._said + piece, learn

    def add(self, ids, learn: bool = False) -> None:
        self.flush()
        self.ids += ids
        self.learn += [learn] * len(ids)
        self.learned = learn

    def flush(self) -> None:
        said, self._said = self._said, ""
        if said:
            self.add(self.text.encode(said), self.learned)

    def sequence(self) -> Sequence:
        self.flush()
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
        names = markers(config, continuous)
        self.vocab: Vocab = build_vocab(text.size, names, special_ids or {}, codebooks, text.id_of, text.controls)
        apart = [range(r.start, r.stop) for r in self.vocab.ranges.values()]
        text.keep_apart(set(self.vocab.special.values()).union(*apart))
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
        self.turns = Turns(config.chat, self._pieces, self.eos)
        self.reader = Reader(config, self.vocab, text, (self.write_plans, self.read_plans), self.placeholders,
                             self.turns, self._template)

    def _pieces(self, template: str) -> list[str | int]:
        """A filled template as texts and the ids of markers."""
        pieces, end = [], 0
        for found in MARKER.finditer(template):
            pieces += [template[end:found.start()], self.vocab.special[found.group()]]
            end = found.end()
        return [piece for piece in [*pieces, template[end:]] if piece != ""]

    def _template(self, template: str) -> tuple[int, ...]:
        """Ids of a filled template: markers by name, the text between them as text."""
        w = _Writer(self.text)
        w.write(self._pieces(template))
        w.flush()
        return tuple(w.ids)

    # ------------------------------------------------------------ writing

    def render(self, sample: Sample, unconditional: bool = False) -> Sequence:
        """The sample as ids and slots. `unconditional` gives the context its form for guidance.

        Raises LayoutError where an image is of no size that the layout writes.
        """
        last = sample.parts[-1]
        drawing = isinstance(last, Image) and last.learn
        parts = self._worded(sample.parts)
        split = self._last_image(parts) if unconditional else 0
        w = self._context(parts[:split], unconditional, parts[split].role if unconditional else None, drawing)
        for part in parts[split:]:
            self._part(w, part, drawing)
        learned = last.learn and not (drawing and self.config.learn == "codes")
        if w.role is not None:
            w.write(self.turns.closes[w.role], learned)
        w.flush()
        if w.role is None or (self.config.chat.eos and w.ids[-1] != self.eos):
            w.add((self.eos,), learned)
        return w.sequence()

    def prompt(self, parts: tuple[Part, ...], then: str = "text", size: tuple[int, int] | None = None,
               unconditional: bool = False, images: bool | None = None) -> Sequence:
        """The parts as context, up to where the model writes `then`: "text" (or whatever it chooses) or "image".

        `images` says whether a forgotten context keeps its images; None: as in training. Raises LayoutError where the
        layout has no place for them.
        """
        plan = self._plan_of_size(size or self.config.sizes[0]) if then == "image" else None
        role = "assistant" if parts and parts[-1].role is not None else None
        w = self._context(self._worded(parts, plan, True), unconditional, role, plan is not None, images)
        if role is not None:
            self._turn(w, role, False, plan is not None)
        if plan is not None:
            self._beside(w, False)
            w.add(plan.header)
        return w.sequence()

    def _worded(self, parts: tuple[Part, ...], plan: Plan | None = None, prompt: bool = False) -> tuple[Part, ...]:
        """The parts with the layout's own words around a caption to draw, or after an image to caption."""
        match parts:
            case (Text(learn=False) as text, Image(learn=True) as image) if not prompt:
                return self._words(text, self._fit(image)[0]), image
            case (Text() as text,) if prompt and plan is not None:
                return (self._words(text, plan),)
            case (Image(learn=False, role=None) as image, *caption) if self.config.caption_words and (
                    (not caption and prompt and plan is None)
                    or (len(caption) == 1 and isinstance(caption[0], Text) and caption[0].learn)):
                return image, Text(self.config.caption_words), *caption
        return parts

    def _words(self, text: Text, plan: Plan) -> Text:
        before, after = self._around(plan)
        return Text(before + text.text + after, text.learn, text.role)

    def _around(self, plan: Plan) -> tuple[str, str]:
        """What stands before and after a caption to draw in the plan's size."""
        before, after = self.config.draw_words.split("{text}")
        return tuple(fill(words, plan.size, self.config.pixels_per_code) for words in (before, after))

    def _unworded(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """The inverse of `_worded`."""
        match parts:
            case (Text(learn=False) as text, Image() as image):
                before, after = self._around(self._fit(image)[0])
                if len(before + after) < len(text.text) and text.text.startswith(before) and text.text.endswith(after):
                    return Text(text.text[len(before):len(text.text) - len(after)], False, text.role), image
            case (Image(role=None) as image, Text(learn=False) as words, *rest) \
                    if words.text == self.config.caption_words:
                return image, *rest
        return parts

    def _context(self, parts: tuple[Part, ...], unconditional: bool, role: Role | None, drawing: bool,
                 images: bool | None = None) -> _Writer:
        """The beginning of a sequence with `parts` read; both training and sampling forget them here."""
        w = _Writer(self.text, forgets=unconditional)
        if not unconditional or self.config.unconditional != "bare":
            w.add((self.bos,))
        for part in parts if not unconditional or self.config.unconditional == "pad" else ():
            self._part(w, part, drawing)
        if not unconditional:
            return w
        keep = self.config.forgets_words_only if images is None else images
        shown = [part for part in parts if isinstance(part, Image)] if keep else []
        match self.config.unconditional:
            case "drop" | "bare":
                for image in shown:
                    self._image(w, image)
            case "pad":
                if role is not None:
                    self._turn(w, role, False, drawing)
                w.flush()
                kept = w.images | {0} if keep else {0}
                ids = [i if n in kept else self.pad_id for n, i in enumerate(w.ids)]
                w = _Writer(self.text, ids, w.learn, w.slots if keep else [], w.role)
            case "replace":
                if shown and not self.config.forgets_words_only:
                    raise LayoutError(f"this layout forgets a context as {self.config.replacement!r}, which has no "
                                      "place for its images ({images}), so they can't guide alone; set image_guidance "
                                      "to 0")
                first, *rest = self.config.replacement.split("{images}")
                w.write(self._pieces(first))
                for words in rest:
                    for image in shown:
                        self._image(w, image)
                    w.write(self._pieces(words))
                w.role = role
        return w

    def _last_image(self, parts: tuple[Part, ...]) -> int:
        last = parts[-1]
        if not (isinstance(last, Image) and last.learn):
            raise LayoutError("only a sample that ends in a learned image has an unconditional form")
        return len(parts) - 1

    def _turn(self, w: _Writer, role: Role | None, learned: bool, drawing: bool) -> None:
        if role == w.role:
            return
        before = w.role
        if before is not None:
            w.write(self.turns.closes[before], learned)
        elif role not in (None, "system") and not w.forgets:
            w.write(self.turns.preface(drawing))
        if role is not None:
            if not w.forgets:
                self.turns.check(before, role)
            w.write(self.turns.opens[role])
        w.role, w.last = role, None

    def _beside(self, w: _Writer, learned: bool) -> None:
        """What stands before an image within a turn."""
        if w.role is not None and w.last is not None:
            twice = 2 if isinstance(w.last, Image) else 1
            w.write([self.config.chat.beside_image * twice], learned)

    def _part(self, w: _Writer, part: Part, drawing: bool) -> None:
        self._turn(w, part.role, w.learned, drawing)
        match part:
            case Text():
                between = self.config.chat.beside_image if isinstance(w.last, Image) and part.role is not None else ""
                lead = self.config.chat.lead if part.role == "assistant" and w.last is None else ""
                w.write([between + lead + part.text], part.learn)
            case Image():
                self._beside(w, part.learn)
                self._image(w, part)
        w.last = part

    def _image(self, w: _Writer, image: Image) -> None:
        image = self._as_read(image)
        plan, arrays = self._fit(image)
        w.flush()
        first = len(w.ids)
        pixels = image.content.array if isinstance(image.content, Pixels) else None
        for n, piece in enumerate(plan.pieces):
            if isinstance(piece, Fixed):
                ends = n == len(plan.pieces) - 1 and self.config.write.stop == "count"
                marks = self.config.learn == "all" or (self.config.learn == "body" and n > 0)
                w.add(piece.ids, image.learn and marks and not ends)
                continue
            values = arrays[piece.level][piece.start:piece.start + piece.length]
            in_slot = pixels is not None or values.dtype != np.int32 or values.shape[1] > 1
            if in_slot:
                payload = values if pixels is None else pixels
                w.slots.append(Slot(len(w.ids), len(values), piece.space, image.learn, payload))
                w.add([self._placeholder(piece.space)] * len(values), image.learn)
            else:
                w.add(self.vocab.ranges[piece.space].ids_of(values[:, 0]).tolist(), image.learn)
        w.images.update(range(first, len(w.ids)))

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
        read = self.config.read
        # Codes read back have lost whether they were learned; where features are read, codes were written.
        written = isinstance(image.content, Codes) and read is not None and read.levels[0].space in self.continuous
        plans = self.write_plans if image.learn or written or read is None else self.read_plans
        match image.content:
            case Pixels(array=a):
                size = (a.shape[0] // self.config.pixels_per_code, a.shape[1] // self.config.pixels_per_code)
                # An encoder that sees every picture at one size needs no size of its codes.
                alike = len({p.pieces for p in plans.values()}) == 1
                if self.config.any_size:
                    plan = self.reader.plan(False, size)
                else:
                    plan = next(iter(plans.values())) if alike else plans[self._plan_of_size(size).size]
                return plan, [np.zeros((plan.lengths(0)[1], 1), np.int32)]
            case Latents(array=a, grid=grid):
                shapes, arrays = [(len(a), grid, a.shape[1])], [a]
            case Codes(levels=levels):
                shapes, arrays = [(len(v.ids), v.grid, v.ids.shape[1]) for v in levels], [v.ids for v in levels]
        free = self.config.any_size and shapes[0][1] is not None
        other = [self.reader.plan(plans is self.read_plans, shapes[0][1])] if free else []
        for plan in [*plans.values(), *other]:
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

    def said(self, ids, chat: bool) -> str:
        """The words among ids that the model wrote, as the assistant in a chat or in a document."""
        text, lead = self.text.decode([int(i) for i in ids if self.vocab.is_text[i]]), self.config.chat.lead
        return text.removeprefix(lead) if chat else text

    def tokens(self, size: tuple[int, int]) -> int:
        """How many tokens an image of this size takes, what begins and ends it included."""
        plan = self.write_plans.get(size) or self.reader.plan(False, size)
        return sum(len(p.ids) if isinstance(p, Fixed) else p.length for p in plan.pieces)

    def parse(self, ids, learn=None, slots: tuple[Slot, ...] = ()) -> Sample:
        """What a sequence says. `learn` and `slots` as in Sequence; ids of images sampled by count need no end.

        Raises LayoutError where an image is cut off or a marker stands alone.
        """
        ids = np.asarray(ids, np.int64)
        learn = np.zeros(len(ids), bool) if learn is None else np.asarray(learn, bool)
        parts = self.turns.read(self.reader.atoms(ids, learn, {s.start: s for s in slots}))
        return sample(*self._unworded(tuple(parts)))

    def row_ends(self) -> set[int]:
        """The ids that end rows of codes."""
        images = [image for image in (self.config.write, self.config.read) if image is not None]
        return {i for image in images for level in image.levels for i in self._template(level.row_end)}

    def name(self, i: int) -> str:
        """An id in words: the marker's name, the codebook and code, or the text."""
        return self.reader.name(i)

    def automaton(self) -> Automaton:
        """Which ids may come next, over all sizes this layout writes."""
        ends = [self.eos] + [piece for piece in self.turns.closes["assistant"][:1] if isinstance(piece, int)]
        return Automaton(self.vocab, list(self.write_plans.values()), ends, self.pad_id,
                         self.config.write.stop == "count", self.placeholders)
