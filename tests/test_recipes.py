"""Every recipe that ships is a test case: it loads, resolves, and writes its own data as sequences that read back."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from dialects import random_content

from data.emoji import FontMissing
from unimm.config.data import ChatJsonl, Emoji, Shapes, Source
from unimm.config.recipe import Recipe
from unimm.config.stages import NextToken
from unimm.layout import Layout
from unimm.recipe import load_recipe, recipe_from_json, recipe_to_json
from unimm.sample import Image, Part, Pixels, Sample, Text
from unimm.stream.sources import open_source
from unimm.stream.tasks import as_task
from unimm.system import layout_of, text_of
from unimm.text import train_sentencepiece

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p.relative_to(ROOT) for p in ROOT.glob("recipes/**/*.py") if "recipe = " in p.read_text())

pytestmark = [pytest.mark.parametrize("path", RECIPES, ids=str)]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_recipe_loads_and_its_resolved_form_is_the_same_recipe(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem, "a run's folder is named by the recipe's name"
    text = recipe_to_json(recipe)
    again = recipe_from_json(text, "resolved")
    assert again == recipe and recipe_to_json(again) == text


def test_a_recipe_uses_the_datasets_that_it_declares_and_no_others(path):
    recipe = load_recipe(path)
    assert {use.data for stage in recipe.stages.values() for use in stage.mix} == set(recipe.data)


def test_a_recipe_writes_its_samples_as_sequences_that_read_back_and_fit_its_rows(path):
    recipe = load_recipe(path)
    found = {name: samples(source, 100, recipe.layout.chat.system is not None) for name, source in recipe.data.items()}
    texts = [p.text for some in found.values() for s in some for p in s.parts if isinstance(p, Text)]
    layout = layout_of(
        recipe, train_sentencepiece(texts, 1000) if recipe.text.kind == "sentencepiece" else text_of(recipe, None)
    )
    rng = np.random.default_rng(0)
    for stage in recipe.stages.values():
        for use in stage.mix if isinstance(stage, NextToken) else ():
            for given in found[use.data]:
                made = with_codes(as_task(use.task, use.data, given), layout, rng)
                sequence = layout.render(made)
                assert layout.parse(sequence.ids, sequence.learn, sequence.slots) == made
                assert sequence.learn.any() and not sequence.learn.all()
                assert 0 <= sequence.ids.min() and sequence.ids.max() < layout.vocab.size
                assert len(sequence) <= stage.seq_len, "a sample of the recipe's own data is longer than its rows"


def samples(source: Source, count: int, talks_to_a_system: bool = True) -> list[Sample]:
    """A source's first samples where it is built in; a pair in its place where files of one's own would be needed."""
    match source:
        case Shapes() | Emoji():
            try:
                return [item.read() for item in islice(open_source(source), count)]
            except FontMissing as missing:
                pytest.skip(str(missing))
        case ChatJsonl():
            picture = Image(Pixels(np.zeros((1, 1, 3), np.uint8)), role="user")
            asked = (Text("what\n\nis this?", role="user"), Text("a red circle", True, "assistant"))
            system = Text("Be brief.", role="system")
            return [Sample((picture, *asked)), Sample(asked), Sample((*asked, picture, *asked)),
                    *([Sample((system, *asked))] if talks_to_a_system else [])]
        case _:
            return [Sample((Image(Pixels(np.zeros((1, 1, 3), np.uint8))), Text("a red circle")))]


def with_codes(given: Sample, layout: Layout, rng: np.random.Generator) -> Sample:
    """The sample with random codes, of a random size that the layout knows, in place of every picture."""

    def one(part: Part) -> Part:
        return replace(part, content=random_content(layout, rng, part.learn)) if isinstance(part, Image) else part

    return Sample(tuple(one(part) for part in given.parts))


def test_a_resolved_recipe_holds_every_field_and_refuses_one_more(path):
    from unimm.config.check import ConfigError

    text = recipe_to_json(load_recipe(path))
    assert isinstance(recipe_from_json(text, "x"), Recipe)
    with pytest.raises(ConfigError, match="resolved: sampling.guidanse"):
        recipe_from_json(text.replace('"guidance"', '"guidanse"'), "resolved")
