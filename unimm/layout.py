"""Sample <-> Sequence.

    render   Sample -> Sequence     what training reads, with what is learned marked
    prompt   parts  -> Sequence     the same up to where the model goes on
    parse    ids    -> Sample       what a sequence says
    automaton                       which ids may come next (`unimm.grammar`)

All four derive from one declarative `unimm.config.tokens.Layout`, so a release's format is data. Writing and reading
take the same way in opposite directions:

    parts --words of the layout--> parts --`unimm.turns`--> atoms --text tokenizer, `unimm.form`--> ids and slots
"""

from functools import cached_property
from itertools import groupby

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.tokens import Codebook, Continuous
from unimm.config.tokens import Layout as LayoutConfig
from unimm.form import Form, Ids, LayoutError
from unimm.grammar import Automaton, Fixed, Plan
from unimm.sample import Codes, Image, Part, Pixels, Sample, Sequence, Slot, Text, joined
from unimm.text import TextTokenizer
from unimm.turns import Atom, Begun, Turns
from unimm.vocab import MARKER, Range, build_vocab, fill, markers


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
        self.vocab = build_vocab(text.size, names, special_ids or {}, codebooks, text.id_of, text.controls)
        text.keep_apart(np.flatnonzero(~self.vocab.is_text).tolist())
        self.placeholders = {c.name: self.vocab.special[c.placeholder] for c in continuous}
        self.bos, self.eos, self.pad_id = (self.vocab.special[m] for m in (config.bos, config.eos, config.pad))
        self.vectors = {c.name: Range(c.name, self.placeholders[c.name], 1, c.channels, True) for c in continuous}
        self.spaces = self.vocab.ranges | self.vectors
        forms = [Form(image, config, self.vocab.ranges, self.vectors, self._spelled)
                 for image in (config.write, config.read) if image is not None]
        self._forms, self._written, self._read = forms, forms[0], forms[-1]
        self.write_plans: dict[tuple[int, int], Plan] = self._written.plans
        self.read_plans: dict[tuple[int, int], Plan] = self._read.plans
        if len({plan.pieces for plan in self.write_plans.values()}) < len(config.sizes):
            raise ConfigError("two of the layout's sizes are written alike; add row ends or a size header")
        self._reads_vectors = config.read is not None and config.read.levels[0].space in self.continuous
        self._turns = Turns(config, self._pieces, self.eos)

    def _pieces(self, template: str) -> list[str | int]:
        """A filled template as texts and the ids of markers."""
        pieces, end = [], 0
        for found in MARKER.finditer(template):
            pieces += [template[end:found.start()], self.vocab.special[found.group()]]
            end = found.end()
        return [piece for piece in [*pieces, template[end:]] if piece != ""]

    def _spelled(self, template: str) -> tuple[int, ...]:
        """Ids of a filled template: markers by name, the text between them as text."""
        return tuple(self._encoded([Atom(piece) for piece in self._pieces(template)]).ids)

    # ------------------------------------------------------------ writing

    def render(self, sample: Sample, unconditional: bool = False) -> Sequence:
        """The sample as ids and slots. `unconditional` gives the context its form for guidance.

        Raises LayoutError where an image is of no size that the layout writes.
        """
        last = sample.parts[-1]
        drawing = isinstance(last, Image) and last.learn
        if unconditional and not drawing:
            raise LayoutError("only a sample that ends in a learned image has an unconditional form")
        atoms = self._written_out(sample.parts, unconditional, drawing)
        return self._encoded(atoms + self._turns.end(last)).sequence()

    def prompt(self, parts: tuple[Part, ...], then: str = "text", size: tuple[int, int] | None = None,
               unconditional: bool = False, images: bool | None = None) -> Sequence:
        """The parts as context, up to where the model writes `then`: "text" (or whatever it chooses) or "image".

        `images` says whether a forgotten context keeps its images; None: as in training. Raises LayoutError where the
        layout has no place for them.
        """
        plan = self._written.plan(size or self.config.sizes[0], free=False) if then == "image" else None
        role = "assistant" if parts and parts[-1].role is not None else None
        atoms = self._written_out((*parts, Begun(role, plan)), unconditional, plan is not None, images)
        return self._encoded(atoms).sequence()

    def _written_out(self, parts: tuple[Part | Begun, ...], unconditional: bool, drawing: bool,
                     images: bool | None = None) -> list[Atom]:
        """The parts behind what begins a sequence; both training and sampling forget all but the last of them here."""
        *context, last = parts = self._worded(parts)
        begin = [Atom(self.bos)]
        if not unconditional:
            return begin + self._turns.write(parts, drawing)
        keep = self.config.forgets_words_only if images is None else images
        shown = [Atom(part) for part in context if isinstance(part, Image) and keep]
        match self.config.unconditional:
            case "drop":
                return begin + shown + self._turns.write([last], drawing, alone=True)
            case "bare":
                return shown + self._turns.write([last], drawing, alone=True)
            case "pad":
                before = self._turns.write([*context, Begun(last.role)], drawing, alone=True)
                begin += self._padded(before, keep)
            case "replace":
                if shown and not self.config.forgets_words_only:
                    raise LayoutError(f"this layout forgets a context as {self.config.replacement!r}, which has no "
                                      "place for its images ({images}), so they can't guide alone; set image_guidance "
                                      "to 0")
                for n, words in enumerate(self.config.replacement.split("{images}")):
                    begin += (shown if n else []) + [Atom(piece) for piece in self._pieces(words)]
        return begin + self._turns.write([last], drawing, inside=last.role, alone=True)

    def _padded(self, atoms: list[Atom], keep: bool) -> list[Atom]:
        """As many pads as there would be ids; `keep` leaves images."""
        padded = []
        for shown, run in groupby(atoms, lambda atom: isinstance(atom.what, Image)):
            run = list(run)
            padded += run if shown and keep else [Atom(self.pad_id)] * len(self._encoded(run).ids)
        return padded

    def _encoded(self, atoms: list[Atom]) -> Ids:
        """Text that stands together is encoded together, as a release's own template is."""
        made = Ids()
        for (said, learn), run in groupby((atom for atom in atoms if atom.what != ""),
                                          lambda atom: (isinstance(atom.what, str), atom.learn)):
            if said:
                made.add(self.text.encode("".join(atom.what for atom in run)), learn)
                continue
            for what, _ in run:
                match what:
                    case Image():
                        image = self._as_read(what)
                        self._form_of(image).write(image, made)
                    case Begun(plan=plan):
                        made.add(plan.header, learn)
                    case marker:
                        made.add((marker,), learn)
        return made

    def _form_of(self, image: Image) -> Form:
        # Codes read back have lost whether they were learned; where features are read, codes were written.
        written = image.learn or (self._reads_vectors and isinstance(image.content, Codes))
        return self._written if written else self._read

    def _as_read(self, image: Image) -> Image:
        """A context image as its pixels where features of them are read. Raises LayoutError where it has none."""
        if image.learn or not self._reads_vectors or not isinstance(image.content, Codes):
            return image
        if image.seen is None:
            raise LayoutError("this layout reads an image as features, but the sample holds its codes alone; encode "
                              "the data again with this recipe, or give the picture itself")
        from unimm.pictures import from_png  # late: Pillow takes a while to import, and few layouts read pixels

        return Image(Pixels(from_png(image.seen)), role=image.role)

    # ------------------------------------------------------------ the layout's own words

    def _worded(self, parts: tuple[Part | Begun, ...]) -> tuple[Part | Begun, ...]:
        """The parts with the layout's own words around a caption to draw, or after an image to caption."""
        match parts:
            case (Text() as text, Begun(plan=Plan() as plan)) | (Text(learn=False) as text, Image(learn=True) as plan):
                before, after = self._around(plan)
                return Text(before + text.text + after, text.learn, text.role), parts[1]
            case (Image(learn=False, role=None) as image, Begun(plan=None) | Text(learn=True), *rest) \
                    if self.config.caption_words and all(isinstance(part, Begun) for part in rest):
                return image, Text(self.config.caption_words), *parts[1:]
        return parts

    def _around(self, drawn: Plan | Image) -> list[str]:
        """What stands before and after a caption to draw in the size of a plan, or of an image."""
        size = (drawn if isinstance(drawn, Plan) else self._form_of(drawn).fit(drawn)[0]).size
        return [fill(words, size, self.config.pixels_per_code) for words in self.config.draw_words.split("{text}")]

    def _unworded(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """The inverse of `_worded`."""
        match parts:
            case (Text(learn=False) as text, Image() as image):
                before, after = self._around(image)
                if len(before + after) < len(text.text) and text.text.startswith(before) and text.text.endswith(after):
                    return Text(text.text[len(before):len(text.text) - len(after)], False, text.role), image
            case (Image(role=None) as image, Text(learn=False) as words, *rest) \
                    if words.text == self.config.caption_words:
                return image, *rest
        return parts

    # ------------------------------------------------------------ reading

    def parse(self, ids, learn=None, slots: tuple[Slot, ...] = ()) -> Sample:
        """What a sequence says. `learn` and `slots` as in Sequence; ids of images sampled by count need no end.

        Raises LayoutError where an image is cut off or a marker stands alone.
        """
        ids = np.asarray(ids, np.int64)
        learn = np.zeros(len(ids), bool) if learn is None else np.asarray(learn, bool)
        parts = self._turns.read(self._atoms(ids, learn, {slot.start: slot for slot in slots}))
        return Sample(self._unworded(joined(parts)))

    def _atoms(self, ids: np.ndarray, learn: np.ndarray, slots: dict[int, Slot]) -> list[Atom]:
        """Characters, whole images, and the markers of turns."""
        atoms: list[Atom] = []
        at, is_text = 0, self.vocab.is_text
        while at < len(ids):
            end, i = at + 1, int(ids[at])
            if i in self._turns.markers:
                atoms.append(Atom(i, bool(learn[at])))
            elif i not in (self.bos, self.pad_id):
                found = next((read for form in self._forms if (read := form.read(ids, at, slots)) is not None), None)
                if found is not None:
                    end, first, content = found
                    atoms.append(Atom(Image(content, bool(learn[first])), bool(learn[first])))
                elif is_text[i]:
                    while end < len(ids) and is_text[ids[end]] and learn[end] == learn[at]:
                        end += 1
                    atoms += [Atom(c, bool(learn[at])) for c in self.text.decode(ids[at:end].tolist())]
                else:
                    raise LayoutError(f"position {at} holds {self.name(i)}, where neither text nor a whole image "
                                      "begins")
            at = end
        return atoms

    def said(self, ids, chat: bool) -> str:
        """The words among ids that the model wrote, as the assistant in a chat or in a document."""
        text, lead = self.text.decode([int(i) for i in ids if self.vocab.is_text[i]]), self.config.chat.lead
        return text.removeprefix(lead) if chat else text

    def name(self, i: int) -> str:
        """An id in words: the marker's name, the codebook and code, or the text."""
        for marker, special in self.vocab.special.items():
            if special == i:
                return marker
        for r in self.vocab.ranges.values():
            if r.start <= i < r.stop:
                return f"{r.name}:{r.codes_of(np.array([i]))[0]}"
        return f"id {i}" if i in self.vocab.controls else repr(self.text.decode([i]))

    # ------------------------------------------------------------ facts

    def tokens(self, size: tuple[int, int]) -> int:
        """How many tokens an image of this size takes, what begins and ends it included."""
        pieces = self._written.plan(size, free=True).pieces
        return sum(len(p.ids) if isinstance(p, Fixed) else p.length for p in pieces)

    def row_ends(self) -> set[int]:
        """The ids that end rows of codes."""
        return set().union(*(form.row_ends for form in self._forms))

    @cached_property
    def automaton(self) -> Automaton:
        """Which ids may come next, over all sizes this layout writes."""
        ends = [self.eos] + [piece for piece in self._turns.closes["assistant"][:1] if isinstance(piece, int)]
        drawn = {r.name for r in self.vocab.ranges.values() if r.depth > 1} | self.vectors.keys()
        return Automaton(self.vocab, list(self.write_plans.values()), ends, self.pad_id,
                         self.config.write.stop == "count", self._written.spaces, drawn)
