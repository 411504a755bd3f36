"""Shapes, the words: captions, questions with their answers, and instructions with their outcome.

    single    a [size] colour shape [place]          or  place, a [size] colour shape
    count     two|three|four [size] colour shapes [in the corners | at the side | , k at the side]
    relation  a [size] colour shape above|below|left of|right of a [size] colour shape
    two       a [size] colour shape [place] and a [size] colour shape [place]

Every caption is true of its scene and says how many things there are; what it leaves out is free.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from data.shapes_world import BLOCK, COLOURS, HELDOUT_PAIRS, POSITIONS, SEEN_PAIRS, SHAPES, SIZES, Scene, Thing

CAPTION_KINDS = ("single", "count", "relation", "two")
NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "thing": "things"}
RELATIONS = ("above", "below", "left of", "right of")

SIDES = {
    "at the top": frozenset(p for p in POSITIONS if p[1] == 8),
    "at the bottom": frozenset(p for p in POSITIONS if p[1] == 24),
    "at the left": frozenset(p for p in POSITIONS if p[0] == 8),
    "at the right": frozenset(p for p in POSITIONS if p[0] == 24),
}
CELLS = {
    phrase: frozenset({position})
    for phrase, position in zip(
        ("at the top left", "at the top center", "at the top right")
        + ("at the center left", "in the center", "at the center right")
        + ("at the bottom left", "at the bottom center", "at the bottom right"),
        POSITIONS,
    )
}
CELL_NAMES = {
    position: phrase.removeprefix("at the ").removeprefix("in the ")
    for phrase, region in CELLS.items()
    for position in region
    if phrase != "in the center"  # only a lone thing can be there, too seldom to be asked as often as the others
}
# "at the top" is the whole top row; the nine cells are exact.
PLACES = SIDES | CELLS
CORNERS = {"in the corners": frozenset((x, y) for x in (8, 24) for y in (8, 24))}
GROUP_PLACES = SIDES | CORNERS
REGIONS = PLACES | CORNERS


def join(*words: str) -> str:
    """The words that aren't empty, one space between."""
    return " ".join(word for word in words if word)


def relations(a: Thing, b: Thing) -> tuple[str, ...]:
    """Every relation of a to b that is true; two of them when the pair is diagonal."""
    true = (b.y - a.y >= BLOCK, a.y - b.y >= BLOCK, b.x - a.x >= BLOCK, a.x - b.x >= BLOCK)
    return tuple(name for name, holds in zip(RELATIONS, true) if holds)


def true_places(things: Iterable[Thing], places: dict[str, frozenset]) -> list[str]:
    """The phrases that hold for every one of the things."""
    where = {(thing.x, thing.y) for thing in things}
    return [phrase for phrase, region in places.items() if where <= region]


def _maybe(word: str, rng: Random, chance: float = 0.5) -> str:
    return word if rng.random() < chance else ""


def _noun(thing: Thing, rng: Random) -> str:
    return join("a", _maybe(thing.size, rng), thing.colour, thing.shape)


def _placed(noun: str, place: str, rng: Random) -> str:
    return f"{place}, {noun}" if rng.random() < 0.3 else f"{noun} {place}"


def _caption_single(scene: Scene, rng: Random) -> str:
    noun = _noun(scene.things[0], rng)
    if rng.random() < 0.4:
        return noun
    return _placed(noun, rng.choice(true_places(scene.things, PLACES)), rng)


def _caption_count(scene: Scene, rng: Random) -> str:
    things, first = scene.things, scene.things[0]
    noun = join(NUMBERS[len(things)], _maybe(first.size, rng), first.colour, PLURALS[first.shape])
    form = rng.random()
    if form < 0.4:
        return noun
    together = true_places(things, GROUP_PLACES)
    if form < 0.7 and together:
        return _placed(noun, rng.choice(together), rng)
    side = rng.choice(tuple(SIDES))
    there = sum((thing.x, thing.y) in SIDES[side] for thing in things)
    return f"{noun}, {NUMBERS[there]} {side}" if 0 < there < len(things) else noun


def _caption_pair(scene: Scene, rng: Random, kind: str) -> str:
    a, b = rng.sample(scene.things, 2)
    if kind == "relation":
        return f"{_noun(a, rng)} {rng.choice(relations(a, b))} {_noun(b, rng)}"
    nouns = [_noun(t, rng) for t in (a, b)]
    places = [_maybe(rng.choice(true_places([t], PLACES)), rng, 0.35) for t in (a, b)]
    return join(nouns[0], places[0], "and", nouns[1], places[1])


def caption(scene: Scene, rng: Random, kind: str | None = None) -> tuple[str, str]:
    """A true caption of the scene and its kind; `kind` decides between relation and two."""
    if scene.kind in ("single", "count"):
        if kind not in (None, scene.kind):
            raise ValueError(f"a {scene.kind} scene has no {kind!r} caption")
        return scene.kind, (_caption_single if scene.kind == "single" else _caption_count)(scene, rng)
    kind = kind or rng.choice(("relation", "two"))
    if scene.kind != "pair" or kind not in ("relation", "two"):
        raise ValueError(f"a {scene.kind} scene has no {kind!r} caption: {scene.key}")
    return kind, _caption_pair(scene, rng, kind)


@dataclass(frozen=True)
class Reference:
    """What a phrase such as "small red circle at the top" picks out; "" leaves that open."""

    size: str = ""
    colour: str = ""
    shape: str = ""
    place: str = ""

    def fits(self, t: Thing) -> bool:
        return (
            self.size in ("", t.size)
            and self.colour in ("", t.colour)
            and self.shape in ("", t.shape)
            and (not self.place or (t.x, t.y) in REGIONS[self.place])
        )

    def within(self, scene: Scene) -> int:
        return sum(self.fits(thing) for thing in scene.things)

    @property
    def text(self) -> str:
        return join(self.size, self.colour, self.shape or "thing", self.place)

    @property
    def plural(self) -> str:
        return join(self.size, self.colour, PLURALS[self.shape or "thing"], self.place)


def refer(thing: Thing, scene: Scene, rng: Random, without: str = "", place: float = 0.0) -> str | None:
    """A phrase that fits this thing alone and doesn't say `without`; None if no short one was found."""
    for chance in (0.5, 1.0):
        words = {"size": _maybe(thing.size, rng, chance * 0.6), "colour": _maybe(thing.colour, rng, chance)}
        words |= {"shape": _maybe(thing.shape, rng, 0.8)}
        words |= {"place": _maybe(rng.choice(true_places([thing], PLACES)), rng, place) if place else ""}
        reference = Reference(**(words | ({without: ""} if without else {})))
        if reference.within(scene) == 1:
            return reference.text
    return None


QUESTION_TYPES = ("colour", "shape", "size", "count", "existence", "relation", "position")
ANSWERS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "count": NUMBERS[1:],
    "existence": ("yes", "no"),
    "relation": ("above", "below", "left", "right"),
    "position": tuple(CELL_NAMES.values()),
}


def ask(kind: str, scene: Scene, rng: Random) -> tuple[str, str] | None:
    """A question of this type about the scene and its answer, or None if there is none (try again)."""
    thing = rng.choice(scene.things)
    if kind == "count":
        return _ask_count(thing, scene, rng)
    if kind == "existence":
        return _ask_existence(thing, scene, rng)
    if kind == "relation":
        return _ask_relation(scene, rng)
    if kind == "position":
        who = refer(thing, scene, rng)
        where = CELL_NAMES.get((thing.x, thing.y))
        return (f"where is the {who}?", where) if who and where else None
    who = refer(thing, scene, rng, without=kind)
    if who is None:
        return None
    asked = {"colour": ("color", thing.colour), "shape": ("shape", thing.shape), "size": ("size", thing.size)}[kind]
    return f"what {asked[0]} is the {who}?", asked[1]


def _ask_count(thing: Thing, scene: Scene, rng: Random) -> tuple[str, str]:
    """One to four of something that is there."""
    what = Reference(_maybe(thing.size, rng, 0.25), _maybe(thing.colour, rng), _maybe(thing.shape, rng, 0.7))
    return f"how many {what.plural} are there?", NUMBERS[what.within(scene)]


def _ask_existence(thing: Thing, scene: Scene, rng: Random) -> tuple[str, str] | None:
    """Half of the time of a thing that is there, else of one that shares colour or shape with it."""
    size = _maybe(thing.size, rng, 0.25)
    colour, shape = thing.look
    if rng.random() < 0.5:
        return f"is there a {join(size, colour, shape)}?", "yes"
    twist = rng.random()
    if size and twist < 0.3:
        size = next(other for other in SIZES if other != size)
    elif twist < 0.65:
        # The colour of one thing on the shape of the other is the hardest of these.
        colour = rng.choice([*COLOURS, *(t.colour for t in scene.things if t != thing)])
    else:
        shape = rng.choice([*SHAPES, *(t.shape for t in scene.things if t != thing)])
    absent = Reference(size, colour, shape)
    if (colour, shape) in HELDOUT_PAIRS or absent.within(scene):
        return None
    return f"is there a {absent.text}?", "no"


def _ask_relation(scene: Scene, rng: Random) -> tuple[str, str] | None:
    """Only where exactly one relation holds, so that one word answers."""
    if len(scene.things) != 2:
        return None
    a, b = rng.sample(scene.things, 2)
    true, who = relations(a, b), refer(a, scene, rng)
    other = refer(b, scene, rng) if rng.random() < 0.5 else "other thing"
    if len(true) != 1 or who is None or other is None:
        return None
    return f"where is the {who} from the {other}?", true[0].removesuffix(" of")


@dataclass(frozen=True)
class Edit:
    """An instruction and the scenes before and after it."""

    before: Scene
    after: Scene
    operation: str
    instruction: str


OPERATIONS = ("recolour", "reshape", "resize", "remove")
_PHRASES = {
    "recolour": ("make the {} {}", "paint the {} {}", "color the {} {}", "turn the {} {}"),
    "reshape": ("make the {} a {}", "turn the {} into a {}", "change the {} into a {}", "replace the {} with a {}"),
    "resize": ("make the {} {}", "turn the {} {}", "change the {} to {}"),
    "remove": ("remove the {}", "delete the {}", "erase the {}", "take away the {}"),
}
_CHANGES = {"recolour": ("colour", COLOURS), "reshape": ("shape", SHAPES), "resize": ("size", SIZES)}


def edit(scene: Scene, rng: Random, operation: str | None = None) -> Edit | None:
    """One thing changed, the others untouched; None if this draw led nowhere (try again).

    The outcome is a scene that can be drawn and told: its things still differ in colour or shape,
    and no pair is one that training never sees.
    """
    operation = operation or rng.choice(OPERATIONS)
    if scene.kind not in ("single", "pair") or (operation == "remove" and scene.kind != "pair"):
        return None
    thing = rng.choice(scene.things)
    others = tuple(t for t in scene.things if t != thing)
    who, phrase = refer(thing, scene, rng, place=0.3), rng.choice(_PHRASES[operation])
    if operation == "remove":
        new, word = (), ""
    else:
        field, values = _CHANGES[operation]
        word = rng.choice([value for value in values if value != getattr(thing, field)])
        new = (replace(thing, **{field: word}),)
    looks = [t.look for t in others + new]
    if who is None or len(set(looks)) < len(looks) or any(look not in SEEN_PAIRS for look in looks):
        return None
    return Edit(scene, Scene(others + new), operation, phrase.format(who, word))
