"""The report of a run with untrained weights: the files, and the page as a browser would take it."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Picture
from tiny import TINY

from unimm.evaluate.report import curves, parts, pick, ranked
from unimm.evaluate.run import evaluate
from unimm.evaluate.scores import EvaluationError, Shown, look_up
from unimm.images.tokenizer import build_tokenizer
from unimm.recipe import recipe_from_json
from unimm.system import System, layout_of, new_model
from unimm.text import BytesTokenizer

VOID = {"meta", "img"}
BLACK = np.zeros((32, 32, 3), np.uint8)


class Page(HTMLParser):
    """Refuses tags that are not closed in order; keeps text, pictures and every address."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.addresses, self.words, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.addresses += [attributes[name] for name in ("src", "href", "action", "data") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> System:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    recipe = replace(TINY, name="<script>alert(1)</script>", sampling=replace(TINY.sampling, text_length=4))
    for name in ("tokenizer", "sft"):
        (folder / name).mkdir()
        lines = [{"step": n, "seconds": n / 2, "loss": 3 / n, "loss/text": 2 / n, "loss/image": 4 / n, "tokens": 50 * n,
                  "tokens_per_second": 100.0} for n in (1, 2, 3)]
        lines.insert(2, {"step": 2, "preview/psnr": 20.0})
        torn = '{"step": 4, "lo'
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    (folder / "seconds.json").write_text('{"tokenizer": 1.5, "sft": 2.25, "evaluate": 99}')
    tokenizer = build_tokenizer(recipe.image_tokenizer).eval()
    layout = layout_of(recipe, BytesTokenizer())
    model = new_model(recipe, layout, tokenizer).eval()
    return System(recipe, folder, layout, tokenizer, tokenizer, model, folder / "sft" / "step-00000003")


@pytest.fixture(scope="module")
def report(system) -> dict:
    return evaluate(system, count=2, seed=3)


@pytest.fixture(scope="module")
def page(system, report) -> str:
    return (system.folder / "report.html").read_text()


def test_the_report_says_what_was_measured_how_and_on_how_many(system, report):
    assert json.loads((system.folder / "report.json").read_text()) == report
    for key, bar in report["bars"].items():
        value = look_up(report, key)
        assert bar["met"] == (value >= bar["bar"] if bar["sense"] == "at_least" else value <= bar["bar"])
    assert len(report["bars"]) == 17 and look_up(report, "t2i.heldout_pairs") is not None
    assert set(report["counts"]["t2i"].values()) == {2}
    assert report["leakage"] == {"scenes": 0, "prompts": 0}
    assert report["sampling"]["guidance"] == system.recipe.sampling.guidance and report["sampling"]["seed"] == 3
    assert report["tokens_per_second"] == {"sft": 100.0} and report["images_per_second"] == {"tokenizer": 100.0}
    assert recipe_from_json(json.dumps(report["recipe"]), "report") == system.recipe


def test_the_seconds_are_the_runs_own_plus_this_evaluation_not_an_earlier_one(system, report):
    seconds = report["seconds"]
    assert {"tokenizer", "sft", "evaluate", "total"} == set(seconds) and seconds["evaluate"] < 99
    assert seconds["total"] == pytest.approx(3.75 + seconds["evaluate"])
    assert json.loads((system.folder / "seconds.json").read_text())["evaluate"] == seconds["evaluate"]
    assert not list(system.folder.glob("*.part"))


def test_the_page_is_whole_and_needs_nothing_from_outside(page):
    parsed = Page(page)
    assert parsed.tags >= {"table", "svg", "details", "img"} and "script" not in parsed.tags
    assert parsed.addresses and all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r'src="data:[^"]*"', "", page))
    assert "<script>alert(1)</script>" in parsed.words
    for image in parsed.images:
        picture = Picture.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        picture.load()
        assert picture.size == (int(image["width"]), int(image["height"])) == (32, 32) and image["alt"]


def test_the_page_shows_every_score_prompt_curve_and_second(page, report):
    words = " ".join(Page(page).words)
    for text in ("one object", "which colour", "reconstructions that pass the judge", "Language model",
                 "Image tokenizer", "unimm eval runs/again --count 2 --seed 3", "step-00000003", "missed: t2i.single"):
        assert text in words
    assert page.count('class="curve strong"') == 4 and 'class="stack"' in page and 'class="area"' in page
    assert page.count('class="meter"') == 16  # 15 shares and the time


def test_a_recipe_without_a_judge_or_metrics_still_has_a_report(system, tmp_path):
    without = evaluate(replace(system, recipe=replace(system.recipe, judge="none"), folder=tmp_path), count=2)
    words = Page((tmp_path / "report.html").read_text()).words
    assert without["bars"] == without["tokens_per_second"] == {} and "t2i" not in without
    assert "To do it again" in words and "Scores" not in words


def test_a_count_of_none_is_refused(system):
    with pytest.raises(EvaluationError, match="--count is 0"):
        evaluate(system, count=0)


def test_what_is_shown_is_the_first_but_for_the_next_failures():
    def items(right: str) -> list[Shown]:
        return [Shown("single", f"{n}", mark == "+", BLACK) for n, mark in enumerate(right)]

    def picked(right: str) -> str:
        return "".join(item.text for item in pick(items(right), 4, 2))

    assert picked("++++++") == "0123"
    assert picked("+++++-") == "0125"
    assert picked("-+++--") == "0145"
    assert picked("-++") == "012"
    assert picked("------") == "0123"


def test_a_page_calls_wrong_pictures_wrong_and_says_why():
    shown = parts().get_template("parts.html").module
    wrong = Shown("two", "a <b> & c", False, BLACK, why="it shows nothing")
    text = shown.drawing(wrong)
    assert 'class="mark no"' in text and "a &lt;b&gt; &amp; c" in text and "it shows nothing" in text
    assert 'class="mark no"' not in shown.drawing(replace(wrong, ok=True))
    assert shown.edit(replace(wrong, given=BLACK, truth=BLACK)).count("<img") == 3
    assert "maybe" in shown.question(replace(wrong, given=BLACK, got="maybe", truth="yes"))
    assert shown.hero([]).strip() == ""


def test_curves_stay_in_their_frame_whatever_the_losses_are():
    plot = parts().get_template("parts.html").module.plot
    for values in ([5.0], [0.0, 0.0], [3.0, 3.0, 3.0], list(np.geomspace(1e3, 1e-6, 2000))):
        chart = plot("loss", curves({"stage": [{"step": n, "loss": value} for n, value in enumerate(values, 1)]}))
        Page(chart)
        drawn = re.findall(r'class="curve[^>]* d="M([^"]*)"', chart)
        numbers = np.array([[float(x) for x in point.split()] for d in drawn for point in d.split("L")])
        assert np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= 100.01 and len(numbers) <= 600


def test_the_codes_chart_is_as_wide_as_the_codebook_and_leaves_unused_codes_blank():
    chart = parts().get_template("parts.html").module.plot("codes", ranked(np.array([0, 7, 0, 1000])))
    Page(chart)
    area = re.search(r'class="area"[^>]* d="([^"]*)"', chart)[1]
    assert re.findall(r"H([\d.]+)", area) == ["25.000", "50.000"]
