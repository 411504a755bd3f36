"""Scores where the truth is known: a drawer and answerer that is always right, and one that is always wrong."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from tiny import TINY

from data import emoji, emoji_scores, shapes, shapes_judge
from data import shapes_scores as shape_scores
from data.shapes_world import LAYOUTS, SIZES, Scene, Thing
from data.shapes_world import draw as picture_of
from unimm.config.data import Emoji, Shapes, Use
from unimm.evaluate import scores as module
from unimm.evaluate import tokenizer_scores
from unimm.evaluate.scores import EvaluationError, Scores, interval, look_up
from unimm.evaluate.tokenizer_scores import Subject
from unimm.images import measure as measures
from unimm.images.tokenizer import build_tokenizer
from unimm.sample import Image, Text
from unimm.system import System, layout_of, new_model
from unimm.text import BytesTokenizer

BLACK = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> System:
    tokenizer = build_tokenizer(TINY.image_tokenizer).eval()
    layout = layout_of(TINY, BytesTokenizer())
    model = new_model(TINY, layout, tokenizer).eval()
    folder = tmp_path_factory.mktemp("run")
    return System(TINY, folder, layout, tokenizer, tokenizer, model, folder / "sft" / "step-00000002")


def scene_of(prompt: str) -> Scene:
    """Some scene that a prompt is true of, found by trying all places and sizes."""
    wanted = shapes_judge.requirement(prompt)
    looks = [[Thing(t.colour, t.shape, size, 0, 0) for size in SIZES] for t in wanted.things]
    for places in LAYOUTS[len(wanted.things)]:
        for things, order in product(product(*looks), permutations(places)):
            scene = Scene(tuple(replace(t, x=x, y=y) for t, (x, y) in zip(things, order)))
            if wanted.met_by(scene):
                return scene
    raise AssertionError(f"no scene for {prompt!r}")


def perfect(monkeypatch, count: int, seed: int) -> None:
    after = {(picture_of(e.before).tobytes(), e.instruction): e.after for e in shapes.evaluation_edits(count, seed)}
    answers = {(picture_of(q.scene).tobytes(), q.question): q.answer for q in shapes.evaluation_questions(count, seed)}
    given = []

    def draw(system, contexts, seeds, sampling=None, guided=True):
        assert len(contexts) == len(seeds)
        return [picture_of(scene_of(parts[0].text) if len(parts) == 1 else after[key_of(parts)]) for parts in contexts]

    def key_of(parts):
        image, text = parts
        assert image.role == text.role == "user" and isinstance(image, Image) and isinstance(text, Text)
        return image.content.array.tobytes(), text.text

    def answer(system, contexts, seed=0):
        return [f" {answers[key_of(parts)]} " for parts in contexts]

    def to_codes(tokenizer, pictures, encode=measures.to_codes):
        given[:] = pictures
        return encode(tokenizer, pictures)

    monkeypatch.setattr(module, "draw", draw)
    monkeypatch.setattr(module, "answer", answer)
    for each in (measures, tokenizer_scores):
        monkeypatch.setattr(each, "to_codes", to_codes)
        monkeypatch.setattr(each, "to_pixels", lambda tokenizer, codes: list(given))


def wrong(monkeypatch) -> None:
    monkeypatch.setattr(module, "draw", lambda system, contexts, seeds: [BLACK] * len(contexts))
    monkeypatch.setattr(module, "answer", lambda system, contexts, seed=0: ["maybe"] * len(contexts))
    for each in (measures, tokenizer_scores):
        monkeypatch.setattr(each, "to_pixels", lambda tokenizer, codes: [BLACK] * len(codes))


def shares(scores: Scores) -> dict[str, float]:
    found = {bar.key: look_up(scores.values, bar.key) for bar in shape_scores.BARS if bar.sense == "at_least"}
    return {key: value for key, value in found.items() if value is not None}


def test_a_perfect_system_scores_one_everywhere_and_a_wrong_one_nothing(system, monkeypatch):
    with monkeypatch.context() as patch:
        perfect(patch, 12, 5)
        right = shape_scores.score(system, Subject.of(system), 12, 5)
    assert set(shares(right).values()) == {1.0} and len(shares(right)) == 15
    assert right.values["tokenizer"]["words"]["all"] == 1 and right.values["tokenizer"]["rfid"] == {"random": 0}
    assert look_up(right.counts, "t2i.two") == look_up(right.counts, "vqa.by_type.relation") == 12
    assert look_up(right.counts, "vqa.exact_match") == 84
    wrong(monkeypatch)
    none = shape_scores.score(system, Subject.of(system), 12, 5)
    assert set(shares(none).values()) == {0.0}
    assert all(not item.ok and item.why for item in none.pictures + none.edits + none.reconstructions)


def test_rounds_edit_what_was_drawn_before_in_one_conversation(system, monkeypatch):
    three, asked = shapes.evaluation_rounds(4, 0), []
    after = {(picture_of(e.before).tobytes(), e.instruction): e.after for made in three for e in made}

    def draw(system, contexts, seeds):
        asked.append(contexts := list(contexts))
        right = [after[parts[-2].content.array.tobytes(), parts[-1].text] for parts in contexts]
        # The second conversation goes wrong in its second round.
        return [picture_of(scene) if (len(asked), n) != (2, 1) else BLACK for n, scene in enumerate(right)]

    monkeypatch.setattr(module, "draw", draw)
    scores = Scores()
    after |= {(BLACK.tobytes(), three[1][2].instruction): three[1][2].after}
    shape_scores._rounds(scores, system, three, 0)
    assert scores.values["rounds"] == {"first": 1.0, "second": 0.75, "third": 1.0}
    assert scores.counts["rounds"] == {"first": 4, "second": 4, "third": 4}
    for n, contexts in enumerate(asked):
        assert {len(parts) for parts in contexts} == {2 + 2 * n}
        assert [part.role for part in contexts[0]] == ["user", *("user", "assistant") * 3][:2 + 2 * n]
    assert (asked[2][1][-2].content.array == BLACK).all()


def test_a_system_is_asked_for_what_its_stages_teach():
    def taught(**parts):
        stage = TINY.stages["sft"]
        uses = tuple(Use(data=part, task=task) for part, task in parts.items())
        data = {part: Shapes(part=part, count=1) for part in parts}
        return shape_scores._taught(replace(TINY, stages={"sft": replace(stage, mix=uses)}, data=data))

    assert taught(pairs="caption", chats="as_is") == {"pairs", "chats"}
    assert taught(pairs="t2i", rounds="as_is", sentences="as_is") == {"pairs", "pictures", "rounds", "sentences"}


def test_every_bar_of_the_issue_is_in_the_table():
    bars = {bar.key: bar.bar for bar in shape_scores.BARS if bar.bar is not None}
    assert bars == {
        "t2i.single": 0.95, "t2i.count": 0.85, "t2i.relation": 0.85, "t2i.two": 0.65, "vqa.exact_match": 0.85,
        **{f"vqa.by_type.{kind}": 0.70
           for kind in ("colour", "shape", "size", "count", "existence", "relation", "position")},
        "edit.exact_match": 0.60, "tokenizer.judge": 0.97, "leakage.scenes": 0, "leakage.prompts": 0,
        "seconds.total": 600}


def test_a_right_count_of_one_kind_is_not_lent_to_another():
    scores = Scores()
    item = module.Shown("single", "a", True, BLACK)
    scores.add_shares("t2i", [item, replace(item, ok=False), replace(item, kind="two")])
    assert scores.values == {"t2i": {"single": 0.5, "two": 1.0}} and scores.counts == {"t2i": {"single": 2, "two": 1}}


def test_a_planted_overlap_with_training_is_found_and_counted_once():
    source = TINY.data["pairs"]
    first, second = [s.parts for s in shapes.pairs(2, source.seed)]
    planted = shapes_judge.read_scene(first[0].content.array)
    clean = shapes.evaluation_scenes(5, 0)
    scores = Scores()
    prompts = [second[1].text, *shapes.evaluation_prompts("two", 5, 0)]
    shape_scores.add_leakage(scores, TINY, [planted, planted, *clean], prompts)
    assert scores.values["leakage"] == {"scenes": 1, "prompts": 1}
    assert scores.counts["leakage"] == {"scenes": 6, "prompts": 6}
    assert scores.counts["trained"]["pictures"] > 40


def test_leakage_is_looked_for_in_what_the_stages_use():
    scene = shapes_judge.read_scene(next(shapes.pairs(1, TINY.data["pairs"].seed)).parts[0].content.array)
    stages = {name: replace(stage, mix=(Use(data="edits"),)) for name, stage in TINY.stages.items()}
    scores = Scores()
    shape_scores.add_leakage(scores, replace(TINY, stages=stages), [scene], [])
    assert scores.values["leakage"]["scenes"] == 0


def test_more_than_the_world_holds_is_refused_with_the_number_it_has(system):
    with pytest.raises(EvaluationError, match="asked for 9999 distinct single prompts, found only .*--count"):
        shape_scores.score(system, Subject.of(system), 9999, 0)


def test_the_interval_ends_where_the_share_is_1_96_standard_errors_away():
    for right, count in ((171, 200), (200, 200), (0, 7), (3, 1200)):
        share = right / count
        for end in interval(share, count):
            assert abs(share - end) == pytest.approx(1.96 * (end * (1 - end) / count) ** 0.5, abs=1e-9)


@pytest.mark.parametrize(("off", "want"), [(0, 1.0), (1, 0.0)])
def test_a_system_that_draws_and_names_every_emoji_scores_one_and_one_that_is_a_name_off_nothing(
        system, monkeypatch, off, want):
    try:
        known = dict(emoji.emoji(32))
    except emoji.FontMissing as why:
        pytest.skip(str(why))
    names = list(known)
    said = {name: names[(n + off) % len(names)] for n, name in enumerate(names)}
    named = {picture.tobytes(): name for name, picture in known.items()}
    monkeypatch.setattr(module, "draw", lambda s, contexts, seeds: [known[said[c[0].text]] for c in contexts])
    monkeypatch.setattr(module, "answer", lambda s, contexts, seed=0: [
        said[named[c[0].content.array.tobytes()]] for c in contexts])
    stages = {name: replace(stage, mix=(Use(data="emoji"),)) for name, stage in TINY.stages.items()}
    recipe = replace(TINY, judge="emoji", data={"emoji": Emoji()}, stages=stages)
    found = emoji_scores.score(replace(system, recipe=recipe), Subject.of(system), 30, 0)
    assert found.values["emoji"] == {"nearest": want, "caption": want}
    assert found.counts["emoji"] == {"nearest": 30, "caption": 30}
