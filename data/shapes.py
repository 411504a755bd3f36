"""Shapes, the datasets: captioned pictures, chats about a picture, edits, rounds of them, sentences, what is held out.

    random scene --training?--> caption, questions or edit --training?--> Sample

A scene and a string are each either for training or for evaluation, decided by a hash of what
they are, so the split needs no list, is the same in every process and can't drift with a seed:
  pictures from text   the string is held out (and unseen in any paraphrase the hash joins, below)
  questions            the scene is held out
  edits and rounds     the scene before, every scene after and every instruction are held out
  sentences            the scene and its captions are held out
Two colour-shape pairs (HELDOUT_PAIRS) occur in no training scene and no training text.

Generated here; no files, no licence. Everything is deterministic in (count, seed).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from data.shapes_words import ANSWERS, CAPTION_KINDS, QUESTION_TYPES, Edit, ask, caption, edit
from data.shapes_world import HELDOUT_PAIRS, KINDS, LOOKS, Scene, draw, middle, random_scene, widened
from unimm.sample import Image, Pixels, Sample, Text, sample

EVALUATION_SCENES = 0.15
EVALUATION_PROMPTS = 0.20

CAPTION_WEIGHTS = {"single": 0.2, "count": 0.25, "relation": 0.3, "two": 0.25}
CHAT_WEIGHTS = {"single": 0.25, "count": 0.25, "pair": 0.5}
# Relation and existence are learned last and get the most questions. Position teaches what relation needs: without it
# answers to "where is a from b?" stayed at chance.
QUESTION_WEIGHTS = {"colour": 1, "shape": 1, "size": 1, "count": 2, "existence": 3, "relation": 4, "position": 4}
QUESTIONS_PER_CHAT = 7
# How far one answer may run ahead of the rarest answer of its type.
ANSWER_LEAD = 20


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56


def is_evaluation_scene(scene: Scene) -> bool:
    """Whether no training sample may show this scene."""
    return _fraction(scene.key) < EVALUATION_SCENES


# Said otherwise, meant alike: strings that differ only in these or in word order share a side, so
# that "b below a" is not in training when "a above b" is held out.
_SYNONYMS = {
    "below": "above",
    "right of": "left of",
    "paint": "make",
    "color": "make",
    "turn": "make",
    "change": "make",
    "replace": "make",
    " into a ": " a ",
    " with a ": " a ",
    " to ": " ",
    "delete": "remove",
    "erase": "remove",
    "take away": "remove",
    ",": "",
}


@lru_cache(maxsize=1 << 16)
def is_evaluation_prompt(text: str) -> bool:
    """Whether no training sample may contain this caption or instruction."""
    for said, meant in _SYNONYMS.items():
        text = text.replace(said, meant)
    return _fraction(" ".join(sorted(text.split()))) < EVALUATION_PROMPTS


def _scene(kind: str, rng: Random, evaluation: bool | None) -> Scene:
    """A scene for a caption or of a kind, from one side of the split or from both (None)."""
    while True:
        scene = random_scene(kind if kind in KINDS else "pair", rng)
        if evaluation is None or is_evaluation_scene(scene) == evaluation:
            return scene


Draw = tuple[Random, str, Scene]


def _draws(name: str, seed: int, weights: dict[str, float], evaluation: bool | None) -> Iterator[Draw]:
    """Endless (generator, kind, scene); what is drawn further from the generator is part of the stream."""
    rng = Random(f"shapes {name} {seed}")
    kinds, each = tuple(weights), tuple(weights.values())
    while True:
        (kind,) = rng.choices(kinds, each)
        yield rng, kind, _scene(kind, rng, evaluation)


def pairs(count: int, seed: int, scale: int = 1) -> Iterator[Sample]:
    """Pictures with their captions: parts [Image, Text], each for training only."""
    for _, (scene, text) in zip(range(count), _captioned(seed)):
        yield sample(Image(Pixels(draw(scene, scale))), Text(text))


def _captioned(seed: int) -> Iterator[tuple[Scene, str]]:
    for rng, kind, scene in _draws("pairs", seed, CAPTION_WEIGHTS, evaluation=False):
        while is_evaluation_prompt(text := caption(scene, rng, kind)[1]):
            # Another scene of the same kind, so that a short wording can't get stuck and kinds keep their weights.
            scene = _scene(kind, rng, evaluation=False)
        yield scene, text


class _Balance:
    """Counts answers per question type, so that no answer is right more often than another."""

    def __init__(self):
        self.seen = {kind: Counter(dict.fromkeys(answers, 0)) for kind, answers in ANSWERS.items()}

    def admits(self, kind: str, answer: str) -> bool:
        return self.seen[kind][answer] < min(self.seen[kind].values()) + ANSWER_LEAD

    def add(self, kind: str, answer: str) -> None:
        self.seen[kind][answer] += 1


def chats(count: int, seed: int, scale: int = 1) -> Iterator[Sample]:
    """A picture and up to seven questions: parts [Image, Text question, Text answer, ...]."""
    for _, (scene, talk) in zip(range(count), _talks(seed)):
        turns = (part for q, a in talk for part in (Text(q, role="user"), Text(a, learn=True, role="assistant")))
        yield sample(Image(Pixels(draw(scene, scale)), role="user"), *turns)


def _talks(seed: int) -> Iterator[tuple[Scene, list[tuple[str, str]]]]:
    balance, kinds, weights = _Balance(), tuple(QUESTION_WEIGHTS), tuple(QUESTION_WEIGHTS.values())
    for rng, _, scene in _draws("chats", seed, CHAT_WEIGHTS, evaluation=False):
        talk: dict[str, str] = {}
        for kind in rng.choices(kinds, weights, k=3 * QUESTIONS_PER_CHAT):
            asked = ask(kind, scene, rng)
            if asked and asked[0] not in talk and balance.admits(kind, asked[1]):
                talk[asked[0]] = asked[1]
                balance.add(kind, asked[1])
            if len(talk) == QUESTIONS_PER_CHAT:
                break
        if talk:
            yield scene, list(talk.items())


def edits(count: int, seed: int, scale: int = 1) -> Iterator[Sample]:
    """A picture, an instruction, and the picture it asks for: parts [Image, Text, Image]."""
    for _, e in zip(range(count), _edits(seed, evaluation=False)):
        before = Image(Pixels(draw(e.before, scale)), role="user")
        after = Image(Pixels(draw(e.after, scale)), learn=True, role="assistant")
        yield sample(before, Text(e.instruction, role="user"), after)



def rounds(count: int, seed: int, scale: int = 1) -> Iterator[Sample]:
    """A picture and two or three edits in turn: parts [Image, Text, Image, Text, Image, ...]."""
    for _, made in zip(range(count), _rounds(seed, (2, 3), evaluation=False)):
        turns = (part for e in made for part in (Text(e.instruction, role="user"),
                                                 Image(Pixels(draw(e.after, scale)), learn=True, role="assistant")))
        yield sample(Image(Pixels(draw(made[0].before, scale)), role="user"), *turns)


def sentences(count: int, seed: int, scale: int = 1) -> Iterator[Sample]:
    """What is true of a scene that nobody shows: one learned Text each."""
    for _, text in zip(range(count), _told(seed, evaluation=False)):
        yield sample(Text(text, learn=True))


PARTS = {"pairs": pairs, "chats": chats, "edits": edits, "rounds": rounds, "sentences": sentences}


def dataset(part: str, count: int, seed: int, scale: int = 1, wide: float = 0.0) -> Iterator[Sample]:
    """The samples of one of PARTS. A share `wide` of them has pictures of 32 x 48 or 48 x 32 (height x width, times
    `scale`), which hold the world in their middle; all pictures of a sample have one size."""
    for n, made in enumerate(PARTS[part](count, seed, scale)):
        if _fraction(f"wide {seed} {n}") >= wide:
            yield made
            continue
        size = (32 * scale, 48 * scale)[:: 1 if _fraction(f"lying {seed} {n}") < 0.5 else -1]
        yield Sample(tuple(replace(p, content=Pixels(widened(p.content.array, *size))) if isinstance(p, Image) else p
                           for p in made.parts))


def _edits(seed: int, evaluation: bool) -> Iterator[Edit]:
    """Edits of which the scene before, the scene after and the instruction are all of one side."""
    for rng, _, scene in _draws("edits", seed, {"single": 0.25, "pair": 0.75}, evaluation):
        made = edit(scene, rng)
        if made and is_evaluation_scene(made.after) == is_evaluation_prompt(made.instruction) == evaluation:
            yield made


def _rounds(seed: int, lengths: tuple[int, ...], evaluation: bool) -> Iterator[tuple[Edit, ...]]:
    """Edits of which each begins where the one before ended, no scene twice, all of one side."""
    for rng, _, scene in _draws("rounds", seed, {"single": 0.1, "pair": 0.9}, evaluation):
        length, found, seen = rng.choice(lengths), [], {scene}
        for _ in range(_TRIES):
            made = edit(scene, rng)
            if made and made.after not in seen and (
                    is_evaluation_scene(made.after) == is_evaluation_prompt(made.instruction) == evaluation):
                scene = made.after
                found.append(made)
                seen.add(scene)
            if len(found) == length:
                yield tuple(found)
                break


# Draws of edits before a scene is given up; of those that may be held out about one in 33 is.
_TRIES = 400


def _told(seed: int, evaluation: bool) -> Iterator[str]:
    """Two captions of a scene, or one that is all there is to say, and up to three questions with their answers:
    "a red circle above a blue cross. what color is the cross? blue."."""
    kinds, weights = tuple(QUESTION_WEIGHTS), tuple(QUESTION_WEIGHTS.values())
    for rng, _, scene in _draws("sentences", seed, CHAT_WEIGHTS, evaluation):
        said = dict.fromkeys(caption(scene, rng)[1] for _ in range(2))
        if any(is_evaluation_prompt(text) != evaluation for text in said):
            continue
        talk = dict(filter(None, (ask(kind, scene, rng) for kind in rng.choices(kinds, weights, k=3))))
        yield " ".join([*(f"{text}." for text in said), *(f"{q} {a}." for q, a in talk.items())])


@dataclass(frozen=True)
class Question:
    """A question about an evaluation scene; `type` is one of QUESTION_TYPES."""

    scene: Scene
    type: str
    question: str
    answer: str


# An evaluation list is drawn until it is full; this many fruitless draws in a row mean that it can't be.
_PATIENCE = 20_000


def _distinct(draws: Iterable, count: int, key, what: str) -> list:
    """The first `count` draws that differ in `key`; None among the draws counts as fruitless."""
    found, fruitless = {}, 0
    for drawn in draws:
        if len(found) >= count:
            break
        if drawn is None or key(drawn) in found:
            fruitless += 1
            if fruitless > _PATIENCE:
                raise ValueError(f"asked for {count} distinct {what}, found only {len(found)}")
        else:
            found[key(drawn)], fruitless = drawn, 0
    return list(found.values())


def evaluation_prompts(kind: str, count: int, seed: int) -> list[str]:
    """Distinct captions that no training sample contains, common wordings first, as in captions.

    `kind` is one of CAPTION_KINDS, or "heldout_pairs": captions of all kinds that name
    at least one colour-shape pair that training never shows or names.
    """
    if kind == "heldout_pairs":
        return _distinct(_strange_captions(seed), count, str, kind + " prompts")
    if kind not in CAPTION_KINDS:
        raise ValueError(f"kind must be one of {(*CAPTION_KINDS, 'heldout_pairs')}, got {kind!r}")
    scenes = _draws(f"prompts {kind}", seed, {kind: 1.0}, evaluation=None)
    texts = (caption(scene, rng, kind)[1] for rng, _, scene in scenes)
    return _distinct((t if is_evaluation_prompt(t) else None for t in texts), count, str, kind + " prompts")


def _strange_captions(seed: int) -> Iterator[str]:
    """Captions of scenes with at least one held-out pair."""
    rng, strange = Random(f"shapes heldout {seed}"), tuple(sorted(HELDOUT_PAIRS))
    while True:
        (kind,) = rng.choices(tuple(CAPTION_WEIGHTS), tuple(CAPTION_WEIGHTS.values()))
        scene = random_scene(kind if kind in KINDS else "pair", rng, strange if kind in KINDS else LOOKS)
        if any(thing.look in HELDOUT_PAIRS for thing in scene.things):
            yield caption(scene, rng, kind)[1]


def evaluation_scenes(count: int, seed: int) -> list[Scene]:
    """Distinct scenes that no training sample shows, of all kinds."""
    scenes = (scene for _, _, scene in _draws("scenes", seed, CAPTION_WEIGHTS, evaluation=True))
    return _distinct(scenes, count, lambda scene: scene.key, "scenes")


def evaluation_questions(count_per_type: int, seed: int) -> list[Question]:
    """Questions about evaluation scenes, the answers of every type equally often (as far as it divides)."""
    found = []
    for kind in QUESTION_TYPES:
        draws = _balanced(kind, count_per_type, seed)
        found += _distinct(draws, count_per_type, lambda q: (q.scene.key, q.question), f"{kind} questions")
    return found


def _balanced(kind: str, count: int, seed: int) -> Iterator[Question | None]:
    most, taken, known = -(-count // len(ANSWERS[kind])), Counter(), set()
    for rng, _, scene in _draws(f"questions {kind}", seed, CHAT_WEIGHTS, evaluation=True):
        asked = ask(kind, scene, rng)
        new = asked is not None and taken[asked[1]] < most and (scene.key, asked[0]) not in known
        if new:
            taken[asked[1]] += 1
            known.add((scene.key, asked[0]))
        yield Question(scene, kind, *asked) if new else None


def evaluation_edits(count: int, seed: int) -> list[Edit]:
    """Edits whose scenes and whose instruction training never shows; distinct in (scene, instruction)."""
    draws = _edits(seed, evaluation=True)
    return _distinct(draws, count, lambda e: (e.before.key, e.instruction), "edits")


def evaluation_rounds(count: int, seed: int) -> list[tuple[Edit, ...]]:
    """Three edits in turn, all of whose scenes and instructions training never shows."""
    draws = _rounds(seed, (3,), evaluation=True)
    return _distinct(draws, count, lambda made: tuple((e.before.key, e.instruction) for e in made), "rounds of edits")


def evaluation_sentences(count: int, seed: int) -> list[str]:
    """Distinct texts about scenes that training never shows, in captions that it never says."""
    return _distinct(_told(seed, evaluation=True), count, str, "sentences")


def training_keys(samples: Iterable[Sample]) -> tuple[set[bytes], set[str]]:
    """What the samples really contain: digests of the middles of their pictures, and their texts, also each
    sentence of them."""
    pictures, texts = set(), set()
    for s in samples:
        for part in s.parts:
            if isinstance(part, Text):
                texts |= {part.text, *re.split(r"\. |(?<=\?) |\.$", part.text)}
            else:
                pictures.add(_digest(middle(part.content.array)))
    return pictures, texts


def _digest(picture) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def leakage(
    keys: tuple[set[bytes], set[str]], scenes: Iterable[Scene] = (), texts: Iterable[str] = (),
    scales: Iterable[int] = (1,),
) -> dict[str, int]:
    """How many of these evaluation scenes and strings occur in the training samples; 0 is expected.

    Compared are pixels (at the scales of the pictures) and strings as they were trained on, not the rule that split
    them.
    """
    pictures, trained, scales = *keys, tuple(scales)
    return {
        "scenes": sum(any(_digest(draw(scene, scale)) in pictures for scale in scales)
                      for scene in {s.key: s for s in scenes}.values()),
        "texts": sum(text in trained for text in set(texts)),
    }
