"""One id space: text | markers | one range per codebook.

Ids below `rows` are rows of the language model's own table and softmax. A codebook that is not
shared (Janus) has ids above `rows`, so that one integer always says what a position is.
"""

import re
from dataclasses import dataclass

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.tokens import Codebook, Continuous, ImageLayout, Layout

MARKER = re.compile(r"<[^<>]+>")


@dataclass(frozen=True)
class Range:
    """The ids of one codebook. With depth above 1 it is a single placeholder id: the codes are in a slot."""

    name: str
    start: int
    codes: int
    depth: int
    shared: bool

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

    @property
    def is_code(self) -> np.ndarray:
        """bool (size,): whether an id is a code."""
        mask = np.zeros(self.size, bool)
        for r in self.ranges.values():
            mask[r.start:r.stop] = True
        return mask

    @property
    def is_text(self) -> np.ndarray:
        """bool (size,): whether an id is plain text, neither marker nor code."""
        mask = np.arange(self.size) < self.text_size
        mask[list(self.special.values())] = False
        return mask & ~self.is_code


def _image_templates(image: ImageLayout) -> list[str]:
    levels = [t for level in image.levels for t in (level.before, level.row_end, level.after)]
    return [image.begin, *levels, image.end]


def fill(template: str, size: tuple[int, int], pixels_per_code: int) -> str:
    """The template with {h} {w} (codes) and {H} {W} (pixels) of a size filled in."""
    h, w = size
    try:
        return template.format(h=h, w=w, H=h * pixels_per_code, W=w * pixels_per_code)
    except (KeyError, IndexError, ValueError):
        raise ConfigError(f"the layout's template {template!r} may use only {{h}} {{w}} {{H}} {{W}}") from None


def markers(layout: Layout, continuous: tuple[Continuous, ...] = ()) -> list[str]:
    """Every marker a layout can write, each once, in the order of its description."""
    plain = [layout.pad, layout.bos, layout.eos, layout.replacement]
    plain += [t for turn in (layout.chat.system, layout.chat.user, layout.chat.assistant) for t in turn]
    sized = [t for image in (layout.write, layout.read) if image is not None for t in _image_templates(image)]
    filled = [fill(t, size, layout.pixels_per_code) for t in sized for size in layout.sizes]
    found = [m for t in plain + filled for m in MARKER.findall(t)] + [c.placeholder for c in continuous]
    return list(dict.fromkeys(found))


def build_vocab(text_size: int, names: list[str], special_ids: dict[str, int],
                codebooks: tuple[Codebook, ...]) -> Vocab:
    """Give every marker and codebook its ids: the stated ones first, the others in order behind the text.

    Raises ConfigError where two things claim one id or one name, or an id is stated for what the layout never writes.
    """
    if unknown := sorted(special_ids.keys() - set(names)):
        raise ConfigError(f"special_ids states an id for {unknown[0]!r}, which the layout never writes; it writes: "
                          f"{', '.join(names)}")
    if len({b.name for b in codebooks}) < len(codebooks):
        raise ConfigError(f"two codebooks share a name: {', '.join(b.name for b in codebooks)}; give each its own")
    if below := [i for i in [*special_ids.values(), *(b.start or 0 for b in codebooks)] if i < 0]:
        raise ConfigError(f"special_ids or a codebook's start is {below[0]}; an id is 0 or more")
    taken = {special_ids[n] for n in names if n in special_ids}
    stated = [b for b in codebooks if b.start is not None]
    for book in stated:
        taken.update(range(book.start, book.start + (book.size if book.depth == 1 else 1)))
    if len(taken) != len({n for n in names if n in special_ids}) + sum(b.size if b.depth == 1 else 1 for b in stated):
        raise ConfigError("special_ids and the codebooks' starts claim some id twice; give each its own")
    following = text_size
    special = {}
    for name in names:
        if name in special_ids:
            special[name] = special_ids[name]
            continue
        while following in taken:
            following += 1
        special[name] = following
        following += 1
    following = max([following, *(i + 1 for i in special.values())])
    ranges = {}
    for book in sorted(codebooks, key=lambda b: (not b.shared, b.start is None)):
        start = book.start if book.start is not None else following
        ranges[book.name] = Range(book.name, start, book.size, book.depth, book.shared)
        following = max(following, ranges[book.name].stop)
    shared = [r.stop for r in ranges.values() if r.shared]
    rows = max([text_size, *(i + 1 for i in special.values()), *shared])
    if any(not r.shared and r.start < rows for r in ranges.values()):
        raise ConfigError("a codebook of its own table must start behind the language model's rows")
    return Vocab(text_size, special, ranges, rows, max([rows, *(r.stop for r in ranges.values())]))
