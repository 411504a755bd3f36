"""Shapes, the judge: does a picture show exactly what a prompt, or a scene, says?

    picture --read_scene--> Scene, or why it shows none     prompt --requirement--> Requirement
                                 `------- Requirement.met_by -------> Verdict

Reading compares soft coverage, not a mask: every lattice position with every sprite, sharp and
slightly blurred, by the overlap of their light, so half-covered edges count half. The arrangement
that explains the whole picture best is drawn again, and four things can fail it:
  the overlap    an object and its sprite have too little in common
  the gap        a quadrant of an object is clearly nearer to another sprite: a stitched object
  the leftover   somewhere the picture and the drawing differ: half an object, a hole, a blob
  the stray      light where nothing was drawn: a ghost too faint or too wide for the others
The limits were set between the worst blur, noise, dimming and projection on few components that
should pass and the best single-quadrant forgery that should not; the tests hold them there.
"""

import re
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data.shapes_words import GROUP_PLACES, NUMBERS, PLACES, PLURALS, RELATIONS, SIDES, Reference, relations
from data.shapes_world import (
    BLOCK,
    COLOURS,
    LAYOUTS,
    POSITIONS,
    SHAPES,
    SIDE,
    SIZES,
    SPRITES,
    Scene,
    Thing,
    middle,
)
from unimm.errors import UserError

HAZE = 0.08  # of full brightness; darker is taken for black, so that noise doesn't add up
OVERLAP = 0.6  # intersection over union of light; clean 1.0, blur of 1.2 pixels 0.76
GAP = 0.15  # of overlap in one quadrant; honest distortions reach 0.10, stitched shapes start at 0.18
LEFTOVER = 0.42  # mean over 2 x 2 pixels; an empty quadrant leaves 0.44 even when blurred
STRAY = 0.25  # mean over 4 x 4 pixels
BLURS = (0.0, 0.8)  # pixels; a sprite matches if it does at either sharpness


@dataclass(frozen=True)
class Verdict:
    """Whether the picture is right, and in words what was found or what is missing."""

    ok: bool
    why: str


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur over the first two axes, black beyond the border; float64 of the same shape."""
    if sigma == 0:
        return picture.astype(np.float64)
    taps = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2)
    kernel /= kernel.sum()
    out = picture.astype(np.float64)
    for axis in (0, 1):
        padded = np.pad(out, [(4, 4) if a == axis else (0, 0) for a in range(out.ndim)])
        size = out.shape[axis]
        out = sum(w * padded.take(range(i, i + size), axis) for i, w in enumerate(kernel))
    return out


_NAMES = tuple(SPRITES) * len(BLURS)
# What every sprite looks like at every blur: float32 (sprites, 16, 16, 3) in [0, 1].
_TEMPLATES = np.stack([blurred(s, b) / 255 for b in BLURS for s in SPRITES.values()]).astype(np.float32)
_LAYOUTS = tuple(tuple(POSITIONS.index(p) for p in layout) for group in LAYOUTS.values() for layout in group)


def _quadrants(blocks: np.ndarray) -> np.ndarray:
    """Blocks (n, 16, 16, 3) cut into quadrants: (n, 4, 192), contiguous so that sums are fast."""
    half = BLOCK // 2
    split = blocks.reshape(-1, 2, half, 2, half, 3).swapaxes(2, 3)
    return np.ascontiguousarray(split).reshape(-1, 4, half * half * 3)


_QUADRANTS = _quadrants(_TEMPLATES)  # (sprites, 4, 192)
_TEMPLATE_LIGHT = _QUADRANTS.sum(2)  # (sprites, 4)


def _light(picture: np.ndarray) -> np.ndarray:
    """The world in the picture as float32 (32, 32, 3) in [0, 1], haze taken for black: its middle square, a larger one
    by the means of its squares."""
    square = middle(picture)
    scale = len(square) // SIDE
    light = square.reshape(SIDE, scale, SIDE, scale, 3).mean((1, 3), dtype=np.float32) / 255
    return np.where(light < HAZE, 0, light)


def _explain(light: np.ndarray) -> list[tuple[int, int, float, float]]:
    """(position, sprite, overlap, gap) of every thing in the layout that explains most of the light."""
    blocks = _quadrants(np.stack([light[y - 8 : y + 8, x - 8 : x + 8] for x, y in POSITIONS]))  # (9, 4, 192)
    own = blocks.sum(2)  # (9, 4)
    differ = blocks[:, None] - _QUADRANTS  # (9, sprites, 4, 192)
    differ = np.abs(differ, out=differ).sum(3)  # (9, sprites, 4)
    # |a - b| = a + b - 2 min(a, b), so both sums follow from the difference.
    added = own[:, None] + _TEMPLATE_LIGHT
    common, union = (added - differ) / 2, (added + differ) / 2
    overlap = common.sum(2) / union.sum(2)  # (9, sprites)
    best, rows = overlap.argmax(1), np.arange(len(POSITIONS))
    by_quadrant = common / np.maximum(union, 1e-6)
    gap = (by_quadrant.max(1) - by_quadrant[rows, best]).max(1)  # (9,)
    # The union over the whole picture: the light that is there and what the sprites add to it.
    common, extra = common.sum(2)[rows, best], union.sum(2)[rows, best] - own.sum(1)
    scores = [common[list(p)].sum() / (light.sum() + extra[list(p)].sum()) for p in _LAYOUTS]
    layout = _LAYOUTS[int(np.argmax(scores))]
    return [(p, int(best[p]), float(overlap[p, best[p]]), float(gap[p])) for p in layout]


def _unexplained(light: np.ndarray, drawn: np.ndarray) -> str:
    """Where the picture and the drawing differ too much, or ""."""
    differ = np.abs(light - drawn).max(2)
    stray = light.max(2) * (drawn.max(2) < 0.02)
    for name, excess, side, limit in (("leftover", differ, 2, LEFTOVER), ("stray", stray, 4, STRAY)):
        windows = sliding_window_view(excess, (side, side)).mean((2, 3))
        if windows.max() > limit:
            y, x = np.unravel_index(windows.argmax(), windows.shape)
            return f"near ({x + side // 2}, {y + side // 2}) {name} {windows.max():.2f}, at most {limit}"
    return ""


def read_scene(picture: np.ndarray) -> Scene | str:
    """The scene that a picture shows, or why it shows none. It is uint8 (32, 32, 3), or larger as `middle` takes it, as
    everywhere here."""
    light = _light(picture)
    if light.sum() < 0.25 * _TEMPLATE_LIGHT.sum(1).min():
        return "nothing is drawn"
    drawn, things = np.zeros_like(light), []
    for position, sprite, overlap, gap in _explain(light):
        (x, y), (colour, shape, size) = POSITIONS[position], _NAMES[sprite]
        if overlap < OVERLAP:
            return f"at ({x}, {y}) a {size} {colour} {shape}? overlap {overlap:.2f}, at least {OVERLAP}"
        if gap > GAP:
            return f"at ({x}, {y}) a {size} {colour} {shape}? a quadrant is another's, gap {gap:.2f}, at most {GAP}"
        drawn[y - 8 : y + 8, x - 8 : x + 8] = _TEMPLATES[sprite]
        things.append(Thing(colour, shape, size, x, y))
    return _unexplained(light, drawn) or Scene(tuple(things))


class PromptError(UserError):
    """A prompt outside the grammar of captions; the message quotes it."""


def _any(words) -> str:
    return f"({'|'.join(words)})"


_NOUN = rf"a (?:{_any(SIZES)} )?{_any(COLOURS)} {_any(SHAPES)}"
_NOUNS = rf"{_any(NUMBERS[2:])} (?:{_any(SIZES)} )?{_any(COLOURS)} {_any(PLURALS[s] for s in SHAPES)}"
_SINGULAR = {plural: shape for shape, plural in PLURALS.items()}
_SINGLE = re.compile(rf"(?:{_any(PLACES)}, )?{_NOUN}(?: {_any(PLACES)})?")
_COUNT = re.compile(
    rf"(?:{_any(GROUP_PLACES)}, )?{_NOUNS}(?: {_any(GROUP_PLACES)})?(?:, {_any(NUMBERS[1:4])} {_any(SIDES)})?"
)
_RELATION = re.compile(rf"{_NOUN} {_any(RELATIONS)} {_NOUN}")
_TWO = re.compile(rf"{_NOUN}(?: {_any(PLACES)})? and {_NOUN}(?: {_any(PLACES)})?")


@dataclass(frozen=True)
class Requirement:
    """What a prompt demands: exactly these things, and what holds between them.

    `relation` holds from the first thing to the second. `part` is (number, side): exactly so many
    of them are there.
    """

    things: tuple[Reference, ...]
    relation: str = ""
    part: tuple[int, str] | None = None

    def met_by(self, scene: Scene) -> bool:
        if len(scene.things) != len(self.things):
            return False
        if self.part and sum((t.x, t.y) in SIDES[self.part[1]] for t in scene.things) != self.part[0]:
            return False
        return any(
            all(reference.fits(thing) for reference, thing in zip(self.things, order))
            and (not self.relation or self.relation in relations(*order))
            for order in permutations(scene.things)
        )


def requirement(prompt: str) -> Requirement:
    """The requirement a prompt states; PromptError if it's outside the grammar of captions."""
    if found := _SINGLE.fullmatch(prompt):
        before, *look, after = found.groups(default="")
        if not (before and after):
            return Requirement((Reference(*look, before or after),))
    elif found := _COUNT.fullmatch(prompt):
        before, number, size, colour, plural, after, some, side = found.groups(default="")
        thing = Reference(size, colour, _SINGULAR[plural], before or after)
        part = (NUMBERS.index(some), side) if some else None
        if sum(map(bool, (before, after, part))) < 2:
            return Requirement((thing,) * NUMBERS.index(number), part=part)
    elif found := _RELATION.fullmatch(prompt):
        words = found.groups(default="")
        return Requirement((Reference(*words[:3]), Reference(*words[4:])), relation=words[3])
    elif found := _TWO.fullmatch(prompt):
        words = found.groups(default="")
        return Requirement((Reference(*words[:4]), Reference(*words[4:])))
    raise PromptError(f"not a caption of this world: {prompt!r}")


def _verdict(read: Scene | str, ok: bool, wanted: str) -> Verdict:
    seen = read if isinstance(read, str) else f"it shows {read.key}"
    return Verdict(ok, seen if ok else f"{seen}; wanted: {wanted}")


def judge(picture: np.ndarray, prompt: str) -> Verdict:
    """Whether a picture, uint8 (32, 32, 3), shows what the prompt says and nothing else."""
    wanted, read = requirement(prompt), read_scene(picture)
    return _verdict(read, isinstance(read, Scene) and wanted.met_by(read), prompt)


def judge_scene(picture: np.ndarray, scene: Scene) -> Verdict:
    """Whether a picture shows this scene: the same things at the same positions."""
    read = read_scene(picture)
    return _verdict(read, read == scene, scene.key)
