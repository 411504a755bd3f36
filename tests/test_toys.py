"""Every toy scale goes its whole way, at two steps a stage: trained, opened, drawing, answering, and drawing on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unimm.config.data import Shapes
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice
from unimm.config.stages import PictureStage
from unimm.config.tokens import SentencePieceText
from unimm.generate.use import answer, draw
from unimm.pipeline import train_run
from unimm.recipe import load_recipe
from unimm.sample import Image, Pixels, Text
from unimm.system import open_run

ROOT = Path(__file__).parents[1]
TOYS = sorted(p.relative_to(ROOT) for p in ROOT.glob("recipes/toys/*.py") if "recipe = " in p.read_text())


def brief(recipe: Recipe) -> Recipe:
    """Two steps a stage on little data; the system is untouched."""
    stages = {name: replace(stage, steps=2, log_every=1, preview_every=2, save_every=2, **(
        {"batch": 8} if isinstance(stage, PictureStage) else {"step_tokens": 2 * 320, "seq_len": 320}))
        for name, stage in recipe.stages.items()}
    data = {name: replace(source, count=24) if isinstance(source, Shapes) else source
            for name, source in recipe.data.items()}
    return replace(recipe, stages=stages, data=data, text=SentencePieceText(vocab_size=400, texts=100))


@pytest.mark.parametrize("path", TOYS, ids=lambda path: path.stem)
def test_a_toy_scale_trains_draws_answers_and_draws_on(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = brief(load_recipe(path))
    train_run(recipe, tmp_path)
    system, scale = open_run(tmp_path), getattr(recipe.decoder, "scale", 1)
    sampling = replace(recipe.sampling, image=Choice(), guidance=1.5)
    drawn = draw(system, [[Text("a red circle")], [Text("two blue squares at the top")]], [0, 1], sampling)
    assert [picture.shape for picture in drawn] == [(32 * scale, 32 * scale, 3)] * 2
    again = draw(system, [[Text("two blue squares at the top")]], [1], sampling)
    assert np.abs(again[0].astype(int) - drawn[1]).max() <= 1, "a picture depends on its neighbours"
    for rows, columns in recipe.layout.sizes[1:]:
        other = draw(system, [[Text("a red circle")]], [0], sampling, (rows, columns))[0]
        assert other.shape == (8 * rows * scale, 8 * columns * scale, 3), "a picture of each size that the layout has"
    shown = Image(Pixels(drawn[0]), role="user")
    assert isinstance(answer(system, [[shown, Text("what is this?", role="user")]])[0], str)
    assert draw(system, [[shown, Text("make it red", role="user")]], [0], sampling)[0].shape == drawn[0].shape


def test_the_ten_systems_are_all_there():
    ten = ("liquid emu3 janus seed_llama tokenflow illume_plus fqgan lavit ett ming_univision").split()
    assert set(ten) <= {path.stem for path in TOYS}
