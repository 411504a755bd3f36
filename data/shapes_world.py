"""Shapes, the world: coloured shapes on a black square, small enough to be learned in minutes.

A picture is 32 x 32. An object's centre lies on the lattice {8, 16, 24} x {8, 16, 24} and the object
owns the 16 x 16 block around it; blocks never overlap, so two objects are 16 apart in x or in y.
The coarse lattice is deliberate: cut into 4 x 4 tokens of 8 x 8 pixels, every token sees nothing
or, when the centre is a corner of the token grid, one whole quadrant of one object, and at worst
half of one. Few different tokens mean low entropy, and entropy decides how soon a model learns.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from random import Random

import numpy as np

SIDE = 32
BLOCK = 16
LATTICE = (8, 16, 24)
POSITIONS = tuple((x, y) for y in LATTICE for x in LATTICE)

# Corners of the RGB cube: at least 45 degrees apart, so a half-covered (darker) edge pixel still
# tells its colour. White would be only 35 degrees from yellow.
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (255, 0, 255),
    "cyan": (0, 255, 255),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 4.0, "large": 7.0}  # radius in pixels

Look = tuple[str, str]  # (colour, shape)
LOOKS: tuple[Look, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
# In no training scene and no training text; both halves of each are seen in other pairs.
HELDOUT_PAIRS: frozenset[Look] = frozenset({("green", "triangle"), ("blue", "circle")})
SEEN_PAIRS = tuple(look for look in LOOKS if look not in HELDOUT_PAIRS)

KINDS = ("single", "count", "pair")


@dataclass(frozen=True, order=True, slots=True)
class Thing:
    """One object; (x, y) is its centre in pixels, y pointing down."""

    colour: str
    shape: str
    size: str
    x: int
    y: int

    @property
    def look(self) -> Look:
        return self.colour, self.shape


def apart(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether the blocks around two centres don't overlap."""
    return abs(a[0] - b[0]) >= BLOCK or abs(a[1] - b[1]) >= BLOCK


def _layouts(count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Every set of `count` positions whose blocks are disjoint."""
    sets = combinations(POSITIONS, count)
    return tuple(s for s in sets if all(apart(a, b) for a, b in combinations(s, 2)))


LAYOUTS = {count: _layouts(count) for count in (1, 2, 3, 4)}  # 9, 16, 8 and 1 of them
_LAYOUT_SET = frozenset(layout for group in LAYOUTS.values() for layout in group)


@dataclass(frozen=True)
class Scene:
    """Things in reading order (by row, then column), whatever order they were given in."""

    things: tuple[Thing, ...]

    def __post_init__(self):
        ordered = tuple(sorted(self.things, key=lambda thing: (thing.y, thing.x)))
        if tuple((thing.x, thing.y) for thing in ordered) not in _LAYOUT_SET:
            raise ValueError(f"a scene has 1 to 4 things on the lattice, blocks apart; got {self.things}")
        object.__setattr__(self, "things", ordered)

    @property
    def key(self) -> str:
        """One string per scene, the same in every process."""
        return "; ".join(f"{t.size} {t.colour} {t.shape} {t.x} {t.y}" for t in self.things)

    @property
    def kind(self) -> str:
        """`single`, `count` (several identical things), or `pair` (two of different colour-shape)."""
        if len(self.things) == 1:
            return "single"
        if len({(*thing.look, thing.size) for thing in self.things}) == 1:
            return "count"
        if len(self.things) == 2 and self.things[0].look != self.things[1].look:
            return "pair"
        return "other"


def random_scene(kind: str, rng: Random, looks: tuple[Look, ...] = SEEN_PAIRS) -> Scene:
    """A scene of `kind`, one of KINDS; pairs mix sizes, counts don't."""
    sizes = tuple(SIZES)
    if kind == "single":
        (x, y) = rng.choice(POSITIONS)
        return Scene((Thing(*rng.choice(looks), rng.choice(sizes), x, y),))
    if kind == "count":
        places = rng.choice(LAYOUTS[rng.choice((2, 3, 4))])
        look, size = rng.choice(looks), rng.choice(sizes)
        return Scene(tuple(Thing(*look, size, x, y) for x, y in places))
    if kind == "pair":
        places, pair = rng.choice(LAYOUTS[2]), rng.sample(looks, 2)
        return Scene(tuple(Thing(*look, rng.choice(sizes), x, y) for look, (x, y) in zip(pair, places)))
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def coverage(shape: str, radius: float, scale: int = 1) -> np.ndarray:
    """How much of every pixel of a block the shape covers: float64 (16 scale, 16 scale) in [0, 1].

    8 x 8 samples a pixel. The centre is the corner between the four middle pixels, so circle, square
    and cross are symmetric in both axes and the triangle in x.
    """
    fine, side = 8, BLOCK * scale
    line = (np.arange(side * fine) + 0.5) / (fine * scale) - BLOCK / 2
    u, v = np.abs(line)[None, :], line[:, None]
    if shape == "circle":
        inside = u**2 + v**2 <= radius**2
    elif shape == "square":
        inside = (u <= radius) & (np.abs(v) <= radius)
    elif shape == "triangle":
        inside = (np.abs(v) <= radius) & (u <= (v + radius) / 2)
    elif shape == "cross":
        arm = round(radius / 3.5)  # 1 and 2 pixels: whole ones, and far from the circle's area
        inside = ((u <= arm) | (np.abs(v) <= arm)) & (u <= radius) & (np.abs(v) <= radius)
    else:
        raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")
    return inside.reshape(side, fine, side, fine).mean((1, 3))


@cache
def sprites(scale: int = 1) -> dict[tuple[str, str, str], np.ndarray]:
    """The block of every (colour, shape, size): uint8 (16 scale, 16 scale, 3)."""
    found = {}
    for shape in SHAPES:
        for size, radius in SIZES.items():
            mask = coverage(shape, radius, scale)[:, :, None]
            for colour, rgb in COLOURS.items():
                found[colour, shape, size] = np.rint(mask * np.array(rgb)).astype(np.uint8)
    return found


SPRITES = sprites(1)


def draw(scene: Scene, scale: int = 1) -> np.ndarray:
    """The picture of a scene: uint8 (32 scale, 32 scale, 3)."""
    picture = np.zeros((SIDE * scale, SIDE * scale, 3), np.uint8)
    for t in scene.things:
        y, x = (slice((place - 8) * scale, (place + 8) * scale) for place in (t.y, t.x))
        picture[y, x] = sprites(scale)[t.colour, t.shape, t.size]
    return picture


def widened(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture in the middle of a black one: uint8 (h, w, 3) -> uint8 (height, width, 3)."""
    h, w = picture.shape[:2]
    if h > height or w > width:
        raise ValueError(f"a picture of {(h, w)} is larger than {(height, width)}")
    canvas = np.zeros((height, width, 3), np.uint8)
    y, x = (height - h) // 2, (width - w) // 2
    canvas[y : y + h, x : x + w] = picture
    return canvas


def middle(picture: np.ndarray) -> np.ndarray:
    """The square in the middle of a picture, which holds the world at some scale: uint8 (32 scale, 32 scale, 3)."""
    h, w = picture.shape[:2] if picture.ndim == 3 else (0, 0)
    side = min(h, w)
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or side == 0 or side % SIDE:
        raise ValueError(f"a picture is uint8 (height, width, 3), the shorter side {SIDE} or a multiple of it; "
                         f"got {picture.dtype} {picture.shape}")
    y, x = (h - side) // 2, (w - side) // 2
    return np.ascontiguousarray(picture[y : y + side, x : x + side])
