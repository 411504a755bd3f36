"""How text and images become tokens: the text tokenizer, the codebooks, the layout."""

from typing import Literal

from unimm.config.check import check, config


@config(kind="sentencepiece", positive="texts")
class SentencePieceText:
    """A byte-pair SentencePiece model with byte fallback, trained on the recipe's own texts at the run's start."""

    vocab_size: int = 1000
    """At most; a small text yields fewer pieces."""
    texts: int = 20000
    """How many training texts to learn it from."""

    def __post_init__(self):
        check(self, self.vocab_size >= 300, "vocab_size", "at least 300: 256 of them are bytes")


@config(kind="pretrained", zero_or_more="size")
class PretrainedText:
    """The tokenizer of a published model: a local folder, or a hub id where a hub is reachable.

    Markers, and codes that it has names for (`Codebook.token`), get the ids that it gives them.
    """

    path: str
    size: int = 0
    """How many ids it has. With that number bytes can stand in for it where it is not at hand; 0: not stated."""


TextTokenizer = SentencePieceText | PretrainedText


@config(positive="size depth")
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
    token: str = ""
    """What the release's text tokenizer calls a code, where codes are entries of it: {code} is its number (or
    {code:06d}), {letters} the number with A to J for 0 to 9 (Chameleon). A tokenizer at hand that has them settles
    their ids, which may be in another order; without it they follow `start` in order."""

    @property
    def ids(self) -> int:
        """How many ids its codes take."""
        return self.size if self.depth == 1 else 1


@config(positive="channels")
class Continuous:
    """Positions that hold vectors, not codes: vision features that are read, latents that are written."""

    name: str
    channels: int
    placeholder: str
    """The marker whose id stands at these positions."""


@config(kind="grid", positive="scale")
class Grid:
    """Positions of a level: row by row, the image's size in codes times `scale`, rounded."""

    scale: float = 1


@config(kind="line", positive="length")
class Line:
    """Positions of a level: always `length`, without a grid (SEED, TiTok)."""

    length: int


@config(kind="up_to")
class UpTo:
    """Positions of a level: as many as the model chooses, between `shortest` and `longest` (LaVIT)."""

    longest: int
    shortest: int = 1

    def __post_init__(self):
        check(self, 1 <= self.shortest <= self.longest, "shortest", f"between 1 and longest ({self.longest})")


@config()
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


@config()
class ImageLayout:
    """One image as tokens. Templates hold markers and literal text.

    {h} {w} are its rows and columns of codes, {h2} {w2} half of them (Lumina-mGPT), {H} {W} its pixels.
    """

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


@config()
class Chat:
    """What stands before and after each speaker's turn: markers and literal text.

    Where nothing opens a speaker's turn, turns are told apart by their order (Chameleon): user, assistant, user, ...
    """

    system: tuple[str, str] | None = ("<|system|>", "")
    """None: there is no such turn."""
    user: tuple[str, str] = ("<|user|>", "")
    assistant: tuple[str, str] = ("<|assistant|>", "<|end|>")
    preface: str = ""
    """The system's words in a chat that has none, where text is to follow."""
    draw_preface: str = ""
    """The same where the last turn draws an image."""
    eos: bool = True
    """Whether the sequence's end follows the last turn, where that does not end with it anyway."""
    lead: str = ""
    """Text between what opens the assistant's turn and its words, written by the model: a space (Janus)."""
    beside_image: str = ""
    """Text between an image and what stands beside it in its turn: a newline (Liquid)."""

    def __post_init__(self):
        check(self, self.user != ("", ""), "user", "opened or closed by something, or turns could not be told apart")
        check(self, self.assistant[1] != "", "assistant", "closed by a marker, or an answer would never end")
        same = self.user[0] != "" and self.user[0] == self.assistant[0]
        check(self, not same, "user", "opened by another text than the assistant's turn")


@config(positive="pixels_per_code")
class Layout:
    """Everything about how a sample becomes a sequence. `unimm.layout` derives the four functions from it."""

    write: ImageLayout
    read: ImageLayout | None = None
    """How an image is read, where that differs from how it is written (Janus)."""
    sizes: tuple[tuple[int, int], ...]
    """Sizes an image may have, (rows, columns) of level 0 at scale 1; the first where none is asked for."""
    any_size: bool = False
    """Whether images of further sizes may be read and learned (Emu3's questions); what is drawn keeps to `sizes`."""
    pixels_per_code: int = 16
    bos: str = "<s>"
    eos: str = "</s>"
    pad: str = "<pad>"
    chat: Chat = Chat()
    unconditional: Literal["drop", "bare", "pad", "replace"] = "drop"
    """What becomes of the context for guidance, in training and in sampling alike: gone but for what begins a
    sequence; gone with that (Lumina-mGPT); pads in its place (Janus); `replacement` in its place."""
    replacement: str = ""
    """The template that stands for the context where `unconditional` is 'replace' (Liquid); {images} in it is every
    image of the context (Emu3.5 forgets words only)."""
    learn: Literal["all", "body", "codes"] = "all"
    """What of a written image is supervised: all, all but what begins it (Liquid), or its codes alone (Emu3)."""
    draw_words: str = "{text}"
    """What is said for an image to be drawn from {text} alone; also {h} {w} {H} {W}, its size."""
    caption_words: str = ""
    """What is said after an image alone for its caption to follow."""

    @property
    def forgets_words_only(self) -> bool:
        """Whether a context that is forgotten in training keeps its images (Emu3.5)."""
        return "{images}" in self.replacement

    def __post_init__(self):
        check(self, len(self.sizes) > 0, "sizes", "at least one (rows, columns)")
        check(self, all(h > 0 and w > 0 for h, w in self.sizes), "sizes", "pairs of numbers above 0")
        check(self, (self.unconditional == "replace") == (self.replacement != ""), "replacement",
               "set exactly when unconditional is 'replace'")
        check(self, self.draw_words.count("{text}") == 1, "draw_words", "a template with {text} once")
        check(self, not self.any_size or all(level.shape.kind == "grid" and level.row_ends != "none"
                                             for level in (self.read or self.write).levels),
              "any_size", "False where rows have no ends to count")
