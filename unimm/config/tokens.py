"""How text and images become tokens: the text tokenizer, the codebooks, the layout."""

from dataclasses import dataclass
from typing import Literal

from unimm.config.check import check, positive


@dataclass(frozen=True, kw_only=True)
class SentencePieceText:
    """A byte-pair SentencePiece model with byte fallback, trained on the recipe's own texts at the run's start."""

    vocab_size: int = 1000
    """At most; a small text yields fewer pieces."""
    texts: int = 20000
    """How many training texts to learn it from."""
    kind: Literal["sentencepiece"] = "sentencepiece"

    def __post_init__(self):
        check(self, self.vocab_size >= 300, "vocab_size", "at least 300: 256 of them are bytes")
        positive(self, "texts")


@dataclass(frozen=True, kw_only=True)
class PretrainedText:
    """The tokenizer of a published model: a local folder, or a hub id where a hub is reachable."""

    path: str
    kind: Literal["pretrained"] = "pretrained"


TextTokenizer = SentencePieceText | PretrainedText


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """The codes of one level of an image tokenizer, as a range in the one id space."""

    name: str
    size: int
    depth: int = 1
    """Codes per position. Above 1 the codes travel in a slot and the id is a placeholder."""
    start: int | None = None
    """First id where a release fixes it; otherwise after the text, the markers and earlier codebooks."""
    shared: bool = True
    """Whether the codes are rows of the language model's own table (Liquid, Emu3) or of their own (Janus)."""

    def __post_init__(self):
        positive(self, "size", "depth")


@dataclass(frozen=True, kw_only=True)
class Continuous:
    """Positions that hold vectors, not codes: vision features that are read, latents that are written."""

    name: str
    channels: int
    placeholder: str
    """The marker whose id stands at these positions."""

    def __post_init__(self):
        positive(self, "channels")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Positions of a level: row by row, the image's size in codes times `scale`."""

    scale: int = 1
    kind: Literal["grid"] = "grid"

    def __post_init__(self):
        positive(self, "scale")


@dataclass(frozen=True, kw_only=True)
class Line:
    """Positions of a level: always `length`, without a grid (SEED, TiTok)."""

    length: int
    kind: Literal["line"] = "line"

    def __post_init__(self):
        positive(self, "length")


@dataclass(frozen=True, kw_only=True)
class UpTo:
    """Positions of a level: as many as the model chooses, between `shortest` and `longest` (LaVIT)."""

    longest: int
    shortest: int = 1
    kind: Literal["up_to"] = "up_to"

    def __post_init__(self):
        check(self, 1 <= self.shortest <= self.longest, "shortest", f"between 1 and longest ({self.longest})")


@dataclass(frozen=True, kw_only=True)
class LevelLayout:
    """How one level of codes is written between the image's markers."""

    space: str
    """The codebook or continuous space its positions hold."""
    shape: Grid | Line | UpTo = Grid()
    before: str = ""
    row_end: str = ""
    row_ends: Literal["none", "between", "after"] = "none"
    after: str = ""

    def __post_init__(self):
        check(self, (self.row_ends == "none") == (self.row_end == ""), "row_end", "set exactly when row_ends is")
        check(self, self.row_ends == "none" or self.shape.kind == "grid", "row_ends", "'none' without a grid")


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """One image as tokens. Templates hold markers and literal text; {h} {w} are codes, {H} {W} pixels."""

    begin: str
    levels: tuple[LevelLayout, ...]
    end: str
    stop: Literal["marker", "count"] = "marker"
    """Whether the model writes `end`, or the sampler stops after the last code (Janus)."""

    def __post_init__(self):
        check(self, self.begin != "", "begin", "a marker, or nothing would say that an image begins")
        check(self, len(self.levels) > 0, "levels", "at least one level")
        varies = any(level.shape.kind == "up_to" for level in self.levels)
        check(self, not varies or self.stop == "marker", "stop", "'marker' where the length varies")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """What stands before and after each speaker's turn."""

    system: tuple[str, str] = ("<|system|>", "")
    user: tuple[str, str] = ("<|user|>", "")
    assistant: tuple[str, str] = ("<|assistant|>", "<|end|>")

    def __post_init__(self):
        for role in ("system", "user", "assistant"):
            check(self, getattr(self, role)[0] != "", role, "opened by a marker, or turns could not be told apart")
        check(self, self.assistant[1] != "", "assistant", "closed by a marker, or an answer would never end")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything about how a sample becomes a sequence. `unimm.layout` derives the four functions from it."""

    write: ImageLayout
    read: ImageLayout | None = None
    """How an image is read, where that differs from how it is written (Janus)."""
    sizes: tuple[tuple[int, int], ...]
    """Sizes an image may have, (rows, columns) of level 0 at scale 1."""
    pixels_per_code: int = 16
    bos: str = "<s>"
    eos: str = "</s>"
    pad: str = "<pad>"
    chat: Chat = Chat()
    unconditional: Literal["drop", "pad", "replace"] = "drop"
    """What becomes of the context for guidance, in training and in sampling alike."""
    replacement: str = ""
    """The template that stands for the context where `unconditional` is 'replace' (Liquid)."""
    learn: Literal["all", "codes"] = "all"
    """Whether a written image's markers are supervised, or its codes alone (Emu3)."""

    def __post_init__(self):
        check(self, len(self.sizes) > 0, "sizes", "at least one (rows, columns)")
        check(self, all(h > 0 and w > 0 for h, w in self.sizes), "sizes", "pairs of numbers above 0")
        positive(self, "pixels_per_code")
        check(self, (self.unconditional == "replace") == (self.replacement != ""), "replacement",
               "set exactly when unconditional is 'replace'")
