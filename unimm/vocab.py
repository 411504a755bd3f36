"""One id space: text | markers | one range per codebook.

Ids below `rows` are rows of the language model's own table and softmax. A codebook that is not
shared (Janus) has ids above `rows`, so that one integer always says what a position is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.tokens import Codebook, Continuous, Layout

MARKER = re.compile(r"<[^<>]+>")
LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


@dataclass(frozen=True)
class Range:
    """The ids of one codebook. With depth above 1 it is a single placeholder id: the codes are in a slot.

    `order`, where ids are not in the order of codes (Chameleon), is int64 (codes,): code k has id start + order[k].
    """

    name: str
    start: int
    codes: int
    depth: int
    shared: bool
    order: np.ndarray | None = field(default=None, compare=False)

    def ids_of(self, codes: np.ndarray) -> np.ndarray:
        return self.start + (codes if self.order is None else self.order[codes])

    def codes_of(self, ids: np.ndarray) -> np.ndarray:
        return ids - self.start if self.order is None else self._back[ids - self.start]

    @cached_property
    def _back(self) -> np.ndarray:
        return np.argsort(self.order)

    def has(self, ids: np.ndarray) -> np.ndarray:
        """bool: which ids are of this range."""
        return (ids >= self.start) & (ids < self.stop)

    @property
    def size(self) -> int:
        return self.codes if self.depth == 1 else 1

    @property
    def stop(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Vocab:
    """text_size ids of text, `special` markers by name, `ranges` of codes by codebook name."""

    text_size: int
    special: dict[str, int]
    ranges: dict[str, Range]
    rows: int
    size: int
    controls: frozenset[int] = frozenset()
    """Ids below text_size that are neither text nor markers of the layout: a release's other special tokens."""

    @cached_property
    def is_code(self) -> np.ndarray:
        """bool (size,): whether an id is a code."""
        mask = np.zeros(self.size, bool)
        for r in self.ranges.values():
            mask[r.start:r.stop] = True
        return mask

    @cached_property
    def is_text(self) -> np.ndarray:
        """bool (size,): whether an id is plain text, neither marker nor code."""
        mask = np.arange(self.size) < self.text_size
        mask[[*self.special.values(), *self.controls]] = False
        return mask & ~self.is_code


def fill(template: str, size: tuple[int, int], pixels_per_code: int) -> str:
    """The template with {h} {w} (codes) and {H} {W} (pixels) of a size filled in."""
    h, w = size
    try:
        return template.format(h=h, w=w, h2=h // 2, w2=w // 2, H=h * pixels_per_code, W=w * pixels_per_code)
    except (KeyError, IndexError, ValueError):
        raise ConfigError(f"the layout's template {template!r} may use only {{h}} {{w}} {{h2}} {{w2}} {{H}} {{W}}"
                          ) from None


def markers(layout: Layout, continuous: tuple[Continuous, ...] = ()) -> list[str]:
    """Every marker a layout can write, each once, in the order of its description."""
    chat = layout.chat
    plain = [layout.pad, layout.bos, layout.eos, layout.replacement]
    plain += [t for turn in (chat.system or (), chat.user, chat.assistant) for t in turn]
    plain += [chat.preface, chat.draw_preface]
    sized = []
    for image in (layout.write, layout.read) if layout.read is not None else (layout.write,):
        levels = [t for level in image.levels for t in (level.before, level.row_end, level.after)]
        sized += [image.begin, *levels, image.end]
    filled = [fill(t, size, layout.pixels_per_code) for t in sized for size in layout.sizes]
    found = [m for t in plain + filled for m in MARKER.findall(t)] + [c.placeholder for c in continuous]
    return list(dict.fromkeys(found))


def numbered(special_ids: dict[str, int], names: list[str]) -> dict[str, int]:
    """The stated ids with a pattern such as "<reserved{n}>": 4 spelled out: its number plus what is stated, so 8710 for
    <reserved08706>. A marker stated by its whole name keeps that."""
    found = {}
    for pattern in (p for p in special_ids if "{n}" in p):
        before, after = map(re.escape, pattern.split("{n}", 1))
        for name in names:
            if match := re.fullmatch(f"{before}(\\d+){after}", name):
                found[name] = int(match.group(1)) + special_ids[pattern]
    return found | {name: i for name, i in special_ids.items() if "{n}" not in name}


def order_of_codes(book: Codebook, id_of: Callable[[str], int | None]) -> tuple[int, np.ndarray] | None:
    """(first id, order) of a codebook whose codes the text tokenizer at hand has names for, else None.

    Raises ConfigError where it has some of them only, or their ids are not one run.
    """
    if not book.token:
        return None
    names = [book.token.format(code=k, letters=str(k).translate(LETTERS)) for k in range(book.size)]
    found = [id_of(name) for name in names]
    if all(i is None for i in found):
        return None
    if None in found:
        raise ConfigError(f"the text tokenizer has no {names[found.index(None)]}, but other codes of {book.name!r}: "
                          "is the codebook's size the release's?")
    ids = np.array(found)
    if len(set(found)) < len(found) or ids.max() - ids.min() != len(ids) - 1:
        raise ConfigError(f"the text tokenizer's ids of {book.name!r}, {names[0]} to {names[-1]}, are not one run")
    if book.start is not None and book.start != ids.min():
        raise ConfigError(f"codebook {book.name!r} starts at {book.start}, but in the text tokenizer at {ids.min()}: "
                          "correct it, drop it, or give the tokenizer of the release that is meant")
    return int(ids.min()), ids - ids.min()


def build_vocab(text_size: int, names: list[str], special_ids: dict[str, int], codebooks: tuple[Codebook, ...],
                id_of: Callable[[str], int | None] = lambda name: None,
                controls: frozenset[int] = frozenset()) -> Vocab:
    """Give every marker and codebook its ids: those of the text tokenizer (`id_of`) and the stated ones first, the
    others in order behind the text. `controls`, ids of the text tokenizer that no text has, are no text either.

    Raises ConfigError where two things claim one id or one name, where a stated id is not that of the text tokenizer,
    or where one is stated for what the layout never writes.
    """
    orders = {book.name: order_of_codes(book, id_of) for book in codebooks}
    codebooks = tuple(b if orders[b.name] is None else replace(b, start=orders[b.name][0]) for b in codebooks)
    stated, found = numbered(special_ids, names), {name: i for name in names if (i := id_of(name)) is not None}
    for name, i in found.items():
        if stated.get(name, i) != i:
            raise ConfigError(f"special_ids says {name} is {stated[name]}, but in the text tokenizer it is {i}: "
                              "correct it, drop it, or give the tokenizer of the release that is meant")
    special_ids = stated | found
    if unknown := sorted(special_ids.keys() - set(names)):
        raise ConfigError(f"special_ids states an id for {unknown[0]!r}, which the layout never writes; it writes: "
                          f"{', '.join(names)}")
    if len({b.name for b in codebooks}) < len(codebooks):
        raise ConfigError(f"two codebooks share a name: {', '.join(b.name for b in codebooks)}; give each its own")
    if below := [i for i in [*special_ids.values(), *(b.start or 0 for b in codebooks)] if i < 0]:
        raise ConfigError(f"special_ids or a codebook's start is {below[0]}; an id is 0 or more")
    claimed = list(special_ids.values())
    for book in codebooks:
        claimed += range(book.start, book.start + book.ids) if book.start is not None else ()
    taken = set(claimed)
    if len(taken) < len(claimed):
        raise ConfigError("special_ids and the codebooks' starts claim some id twice; give each its own")
    free = (i for i in count(text_size) if i not in taken)
    special = {name: special_ids[name] if name in special_ids else next(free) for name in names}
    behind = following = max([text_size, *(i + 1 for i in special.values())])
    ranges = {}
    for book in sorted(codebooks, key=lambda b: (not b.shared, b.start is None)):
        start = book.start if book.start is not None else following
        order = orders[book.name] and orders[book.name][1]
        ranges[book.name] = Range(book.name, start, book.size, book.depth, book.shared, order)
        following = max(following, ranges[book.name].stop)
    rows = max([behind, *(r.stop for r in ranges.values() if r.shared)])
    if any(not r.shared and r.start < rows for r in ranges.values()):
        raise ConfigError("a codebook of its own table must start behind the language model's rows")
    size = max([rows, *(r.stop for r in ranges.values())])
    return Vocab(text_size, special, ranges, rows, size, controls - set(special.values()))
