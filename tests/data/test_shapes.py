"""The world, its words and the split; every truth is recomputed here from the scene alone."""

import re
from collections import Counter
from itertools import chain, islice, permutations, product
from random import Random

import numpy as np
import pytest

from data import shapes
from data.shapes_judge import read_scene, requirement
from data.shapes_words import ANSWERS, CAPTION_KINDS, QUESTION_TYPES, ask, caption, edit
from data.shapes_world import (
    COLOURS,
    HELDOUT_PAIRS,
    KINDS,
    LAYOUTS,
    LOOKS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw,
    middle,
    random_scene,
    widened,
)
from unimm.config.data import Shapes
from unimm.sample import Image, Pixels, Text, sample
from unimm.stream.sources import open_source

STRANGE = re.compile("|".join(f"{colour} {shape}" for colour, shape in HELDOUT_PAIRS))


def texts(samples):
    return [part.text for s in samples for part in s.parts if isinstance(part, Text)]


def picked(phrase, scene):
    """The things a referring phrase fits, word by word."""
    words = phrase.split(" at ")[0].split(" in the ")[0].split()
    return [
        t for t in scene.things if all(w in ("thing", t.size, t.colour, t.shape) for w in words) and here(phrase, t)
    ]


def here(phrase, thing):
    """Whether the place words of a phrase, if any, are true of the thing."""
    place = set(re.findall(r"\b(top|bottom|left|right|center)\b", phrase))
    rows = {"top": thing.y == 8, "bottom": thing.y == 24, "left": thing.x == 8, "right": thing.x == 24}
    if not all(rows[word] for word in place - {"center"}):
        return False
    free = [axis for axis, names in ((thing.x, {"left", "right"}), (thing.y, {"top", "bottom"})) if not names & place]
    return "center" not in place or all(axis == 16 for axis in free)


def test_a_scene_keeps_one_order_and_refuses_overlap():
    a, b = Thing("red", "circle", "small", 8, 24), Thing("blue", "cross", "large", 24, 8)
    assert Scene((a, b)) == Scene((b, a)) and Scene((a, b)).key == Scene((b, a)).key
    with pytest.raises(ValueError, match="blocks apart"):
        Scene((a, Thing("blue", "cross", "large", 16, 16)))
    with pytest.raises(ValueError, match="on the lattice"):
        Scene((Thing("blue", "cross", "large", 9, 16),))


def test_different_scenes_draw_different_pictures():
    rng = Random(0)
    scenes = {s.key: s for s in (random_scene(kind, rng, LOOKS) for kind in KINDS * 1000)}
    assert len({draw(s).tobytes() for s in scenes.values()}) == len(scenes)


def test_no_shape_fills_more_than_its_block_and_mirrors_in_x():
    for thing in (Thing(c, f, z, 16, 16) for c in COLOURS for f in SHAPES for z in SIZES):
        picture = draw(Scene((thing,)))
        assert (picture == picture[:, ::-1]).all() and picture.max() == 255
        assert not picture[:8].any() and not picture[24:].any() and not picture[:, :8].any()


@pytest.mark.parametrize("make", shapes.PARTS.values())
def test_a_dataset_depends_on_its_seed_alone(make):
    first, again, other = list(make(60, 1)), list(make(60, 1)), list(make(60, 2))
    assert len(first) == 60 and first == again and first != other
    assert first[:20] == list(make(20, 1))


def test_samples_mark_what_is_learned():
    pair, chat, change = (next(make(1, 0)) for make in (shapes.pairs, shapes.chats, shapes.edits))
    assert [type(p) for p in pair.parts] == [Image, Text]
    assert [type(p) for p in change.parts] == [Image, Text, Image]
    assert [p.learn for p in change.parts] == [False, False, True]
    assert [p.role for p in change.parts] == ["user", "user", "assistant"]
    turns = chat.parts[1:]
    assert chat.parts[0].role == "user" and all((q.role, q.learn) == ("user", False) for q in turns[::2])
    assert all((a.role, a.learn) == ("assistant", True) for a in turns[1::2])


def test_no_evaluation_scene_or_string_occurs_in_training():
    train = chain(shapes.pairs(20_000, 0), shapes.chats(5_000, 0), shapes.edits(5_000, 0), shapes.rounds(1_500, 0),
                  shapes.sentences(3_000, 0))
    keys = shapes.training_keys(train)
    changes = shapes.evaluation_edits(300, 0)
    questions = shapes.evaluation_questions(100, 0)
    scenes = shapes.evaluation_scenes(1500, 0) + [q.scene for q in questions]
    changes += [e for made in shapes.evaluation_rounds(40, 0) for e in made]
    scenes += [s for e in changes for s in (e.before, e.after)]
    prompts = [p for kind in (*CAPTION_KINDS, "heldout_pairs") for p in shapes.evaluation_prompts(kind, 300, 0)]
    prompts += [e.instruction for e in changes]
    told = shapes.evaluation_sentences(200, 0)
    prompts += [*told, *(said for text in told for said in text.split(". ") if "?" not in said and " " in said)]
    assert shapes.leakage(keys, scenes, prompts) == {"scenes": 0, "texts": 0}


def test_what_leaked_is_found_in_a_wider_picture_and_among_the_sentences_of_a_text():
    (scene,) = shapes.evaluation_scenes(1, 0)
    seen = shapes.training_keys([shapes.sample(Image(shapes.Pixels(widened(draw(scene), 48, 32))),
                                               Text("a red circle. what color is it? red. two blue crosses."))])
    assert shapes.leakage(seen, [scene], ["a red circle", "two blue crosses", "red"]) == {"scenes": 1, "texts": 3}


def test_rounds_are_edits_each_of_what_the_one_before_left():
    for made in shapes.rounds(60, 0):
        pictures, words = made.parts[::2], made.parts[1::2]
        assert len(words) in (2, 3) and [p.learn for p in pictures] == [False] + [True] * len(words)
        assert {p.role for p in made.parts if not p.learn} == {"user"} and pictures[1].role == "assistant"
        scenes = [read_scene(p.content.array) for p in pictures]
        assert len(set(scenes)) == len(scenes)
        assert all(len(set(a.things) - set(b.things)) == 1 for a, b in zip(scenes, scenes[1:]))
    for three in shapes.evaluation_rounds(20, 0):
        assert len(three) == 3 and all(a.after == b.before for a, b in zip(three, three[1:]))
        assert all(shapes.is_evaluation_scene(e.after) and shapes.is_evaluation_prompt(e.instruction) for e in three)


def test_sentences_tell_one_world_in_captions_and_answers_that_are_true_of_it():
    rng = Random(0)
    for text in islice(shapes._told(0, evaluation=False), 300):
        said = re.findall(r"(?:(?<=\. )|^)[^.?]*\?? ?[^.?]*\.", text)
        captions = [one.removesuffix(".") for one in said if "?" not in one]
        asked = [one.removesuffix(".").split("? ") for one in said if "?" in one]
        requirements = [requirement(one) for one in captions]
        fits = [s for s in scenes_of(requirements, rng) if all(r.met_by(s) for r in requirements)]
        assert captions and " ".join(said) == text
        for q, a in asked:
            kind = next(k for k, begin in BEGINS.items() if re.match(begin, q))
            assert any(answer_or_none(kind, q + "?", s) == a for s in fits), text


BEGINS = {"relation": "where is .* from the", "position": "where", "count": "how", "existence": "is",
          "colour": "what c", "shape": "what sh", "size": "what si"}


def scenes_of(requirements, rng):
    """All scenes with the things that captions together name, wherever and however large they may be."""
    first = requirements[0].things
    sizes = list(SIZES)
    for places in LAYOUTS[len(first)]:
        for order in set(permutations(places)):
            for chosen in product(sizes, repeat=len(first)):
                yield Scene(tuple(Thing(t.colour, t.shape, t.size or size, x, y)
                                  for t, size, (x, y) in zip(first, chosen, order)))


def answer_or_none(kind, question, scene):
    """As `answer`; None where the question has none in this scene."""
    try:
        return answer(kind, question, scene)
    except ValueError:  # it names no single thing
        return None


def test_wide_pictures_hold_the_world_in_their_middle_and_all_of_a_sample_have_one_size():
    plain, wide = list(shapes.dataset("edits", 200, 5)), list(shapes.dataset("edits", 200, 5, wide=0.5))
    assert plain == list(shapes.edits(200, 5)) and wide == list(shapes.dataset("edits", 200, 5, wide=0.5))
    sizes = Counter()
    for one, other in zip(plain, wide):
        assert texts([one]) == texts([other])
        (size,) = {image.content.array.shape[:2] for image in other.images}
        sizes[size] += 1
        for a, b in zip(one.images, other.images):
            assert (middle(b.content.array) == a.content.array).all()
            assert b.content.array.sum() == a.content.array.sum()  # black around it
    assert 70 < sizes[32, 32] < 130 and set(sizes) == {(32, 32), (48, 32), (32, 48)} and min(sizes.values()) > 25


def test_the_middle_of_a_picture_is_read_at_any_scale():
    (scene,) = shapes.evaluation_scenes(1, 0)
    assert read_scene(widened(draw(scene, 2), 64, 96)) == scene
    for wrong in (np.zeros((32, 40), np.uint8), np.zeros((40, 40, 3), np.uint8), draw(scene).astype(float)):
        with pytest.raises(ValueError, match="shorter side 32"):
            middle(wrong)


def test_leakage_counts_what_did_leak():
    scenes, train = shapes.evaluation_scenes(5, 0), list(shapes.pairs(50, 0))
    leaked = [type(train[0])((Image(shapes.Pixels(draw(s))), Text("a leak"))) for s in scenes[:2]]
    keys = shapes.training_keys(train + leaked)
    assert shapes.leakage(keys, scenes, ["a leak", "no leak"]) == {"scenes": 2, "texts": 1}


def test_heldout_pairs_occur_in_no_training_text_and_no_training_scene():
    samples = [*shapes.pairs(4000, 3), *shapes.chats(2000, 3), *shapes.edits(2000, 3)]
    assert not [text for text in texts(samples) if STRANGE.search(text)]
    pictures = [image.content.array for s in samples[::20] for image in s.images]
    looks = {thing.look for picture in pictures for thing in read_scene(picture).things}
    assert looks == set(LOOKS) - HELDOUT_PAIRS
    assert all(STRANGE.search(prompt) for prompt in shapes.evaluation_prompts("heldout_pairs", 300, 0))


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_there_are_300_unseen_prompts_of_each_kind_of_seen_pairs(kind):
    prompts = shapes.evaluation_prompts(kind, 300, 0)
    assert len(set(prompts)) == 300 and not [p for p in prompts if STRANGE.search(p)]


def test_asking_for_more_prompts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="found only"):
        shapes.evaluation_prompts("count", 100_000, 0)


def test_paraphrases_share_a_side_of_the_split():
    rng = Random(0)
    for _ in range(300):
        scene = random_scene("pair", rng)
        text = caption(scene, rng, "relation")[1]
        for said, turned in (("above", "below"), ("below", "above"), ("left of", "right of"), ("right of", "left of")):
            if f" {said} " in text:
                a, b = text.split(f" {said} ")
                assert shapes.is_evaluation_prompt(f"{b} {turned} {a}") == shapes.is_evaluation_prompt(text)
    assert shapes.is_evaluation_prompt("paint the cross red") == shapes.is_evaluation_prompt("turn the cross red")


def test_the_split_takes_the_fractions_it_names():
    rng = Random(0)
    scenes = {s.key: s for s in (random_scene("pair", rng) for _ in range(6000))}
    share = np.mean([shapes.is_evaluation_scene(s) for s in scenes.values()])
    assert abs(share - shapes.EVALUATION_SCENES) < 0.02
    captions = {caption(s, rng, "two")[1] for s in scenes.values()}
    assert abs(np.mean([shapes.is_evaluation_prompt(c) for c in captions]) - shapes.EVALUATION_PROMPTS) < 0.02


def answer(kind, question, scene):
    """The answer to a question, recomputed from its words."""
    if kind == "count":
        singular = re.sub(r"(cross)es|(circle|square|triangle|thing)s", r"\1\2", question)
        found = picked(singular.removeprefix("how many ").removesuffix(" are there?"), scene)
        return ("no", "one", "two", "three", "four")[len(found)]
    if kind == "existence":
        return "yes" if picked(question.removeprefix("is there a ").removesuffix("?"), scene) else "no"
    if kind == "relation":
        first, second = re.fullmatch("where is the (.*) from the (.*)\\?", question).groups()
        (a,) = picked(first, scene)
        (b,) = set(scene.things) - {a} if second == "other thing" else picked(second, scene)
        holds = {"left": b.x - a.x > 8, "right": a.x - b.x > 8, "above": b.y - a.y > 8, "below": a.y - b.y > 8}
        (only,) = [name for name, true in holds.items() if true]
        return only
    (thing,) = picked(question.split(" is the ")[1].removesuffix("?"), scene)
    row, column = {8: "top", 16: "center", 24: "bottom"}[thing.y], {8: "left", 16: "center", 24: "right"}[thing.x]
    position = "center" if row == column == "center" else f"{row} {column}"
    return {"colour": thing.colour, "shape": thing.shape, "size": thing.size, "position": position}[kind]


def test_every_answer_is_right():
    rng, asked = Random(0), Counter()
    for _ in range(2000):
        scene = random_scene(rng.choice(KINDS), rng)
        for kind in QUESTION_TYPES:
            found = ask(kind, scene, rng)
            if found:
                asked[kind] += 1
                assert answer(kind, found[0], scene) == found[1], (scene.key, found)
    assert all(asked[kind] > 200 for kind in QUESTION_TYPES)


def test_evaluation_questions_are_right_distinct_and_balanced():
    questions = shapes.evaluation_questions(120, 0)
    assert all(answer(q.type, q.question, q.scene) == q.answer for q in questions)
    assert len({(q.scene.key, q.question) for q in questions}) == 120 * len(QUESTION_TYPES)
    counts = Counter((q.type, q.answer) for q in questions)
    assert counts == {(kind, a): 120 // len(answers) for kind, answers in ANSWERS.items() for a in answers}


def test_training_answers_are_balanced_and_no_chat_repeats_a_question():
    answers = Counter()
    for chat in shapes.chats(3000, 0):
        turns = [part.text for part in chat.parts[1:]]
        assert len(set(turns[::2])) == len(turns[::2]) <= shapes.QUESTIONS_PER_CHAT
        for q, a in zip(turns[::2], turns[1::2]):
            kind = "relation" if " from the " in q else q.split()[0]
            answers.update([(kind, a)] if kind != "what" else [])
    for kind in ("how", "is", "where", "relation"):
        group = [n for (found, _), n in answers.items() if found == kind]
        assert max(group) - min(group) <= shapes.ANSWER_LEAD, (kind, answers)


def test_what_is_asked_for_and_absent_shares_a_colour_or_a_shape_with_something_there():
    rng, absent = Random(1), 0
    for _ in range(3000):
        scene = random_scene("pair", rng)
        found = ask("existence", scene, rng)
        if found and found[1] == "no":
            absent += 1
            assert any(word in found[0] for thing in scene.things for word in thing.look)
    assert absent > 500


def test_an_edit_changes_the_thing_it_names_and_nothing_else():
    rng, operations = Random(0), Counter()
    made = (edit(random_scene(rng.choice(("single", "pair")), rng), rng) for _ in range(6000))
    for e in chain(filter(None, made), shapes.evaluation_edits(100, 0)):
        operations[e.operation] += 1
        (old,), new = set(e.before.things) - set(e.after.things), set(e.after.things) - set(e.before.things)
        words = re.sub(r"^(take away|\w+) the ", "", e.instruction)
        who = re.sub(r"( into a| with a| to| a)? \w+$", "", words) if e.operation != "remove" else words
        assert picked(who, e.before) == [old], (e, who)
        if e.operation == "remove":
            assert not new and len(e.after.things) == 1
            continue
        (new,) = new
        field = {"recolour": "colour", "reshape": "shape", "resize": "size"}[e.operation]
        changed = [f for f in ("colour", "shape", "size", "x", "y") if getattr(old, f) != getattr(new, f)]
        assert changed == [field] and e.instruction.endswith(getattr(new, field))
    assert all(operations[o] > 300 for o in ("recolour", "reshape", "resize", "remove"))


def test_captions_are_mixed_by_their_weights():
    kinds = Counter()
    for text in texts(shapes.pairs(4000, 0)):
        if re.search(r" (above|below|left of|right of) ", text):
            kinds["relation"] += 1
        else:
            kinds["two" if " and " in text else "count" if re.search("two|three|four", text) else "single"] += 1
    assert all(abs(kinds[kind] / 4000 - weight) < 0.03 for kind, weight in shapes.CAPTION_WEIGHTS.items())


def test_training_shows_every_seen_look_size_and_place():
    shown = {thing for scene, _ in islice(shapes._captioned(0), 6000) for thing in scene.things}
    # The centre leaves no room for a second thing, so some looks are held out there.
    aside = {thing for thing in shown if (thing.x, thing.y) != (16, 16)}
    assert len(aside) == (len(LOOKS) - len(HELDOUT_PAIRS)) * len(SIZES) * 8


def test_a_picture_at_twice_the_size_is_drawn_there_and_averages_to_the_one_at_its_own():
    for scene in shapes.evaluation_scenes(20, 3):
        small, large = draw(scene), draw(scene, 2)
        halved = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert large.shape == (64, 64, 3) and np.abs(halved - small).max() < 9, scene.key
    blown_up = draw(scene).repeat(2, 0).repeat(2, 1)
    assert (large != blown_up).any(), "edges are finer than those of the small picture"
    (item,) = open_source(Shapes(part="pairs", count=1, seed=3, scale=2))
    assert item.read().images[0].content.array.shape == (64, 64, 3)


def test_a_leak_is_found_at_the_scale_it_was_trained_at():
    scenes = shapes.evaluation_scenes(2, 3)
    keys = shapes.training_keys([sample(Image(Pixels(draw(scenes[0], 2))), Text("a leak"))])
    assert shapes.leakage(keys, scenes)["scenes"] == 0 and shapes.leakage(keys, scenes, scales={1, 2})["scenes"] == 1
