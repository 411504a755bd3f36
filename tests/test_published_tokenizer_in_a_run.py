"""A recipe whose image tokenizer is a release's: no stage trains it, pictures of several sizes, draws and goes on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from images.published import tiny, whole_photographs
from PIL import Image as Picture
from safetensors.torch import save_file
from tiny import TINY

from unimm.config.check import ConfigError
from unimm.config.data import ImageFolder, Use
from unimm.config.model import SharedTable
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.generate.use import answer, draw
from unimm.images.tokenizer import fingerprint, load_tokenizer
from unimm.pipeline import encode_run, train_run
from unimm.recipe import recipe_from_json, recipe_to_json
from unimm.sample import Image, Pixels, Text
from unimm.show import show
from unimm.stream.shards import open_shards
from unimm.system import open_run
from unimm.weights import StoredError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Emu3's tokenizer from a file; photographs with a size header and row ends, on one of three grids each."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = tiny("emu3")
    save_file({name: t.contiguous() for name, t in tokenizer.state_dict().items()}, folder / "emu3.safetensors")
    with open(folder / "metadata.jsonl", "w") as file:
        for n, picture in enumerate(whole_photographs()):
            Picture.fromarray(picture).save(folder / f"{n}.png")
            file.write(json.dumps({"file_name": f"{n}.png", "text": f"photograph {n}"}) + "\n")
    level = LevelLayout(space="visual", row_end="<eol>", row_ends="after")
    layout = replace(TINY.layout, pixels_per_code=8, sizes=((4, 4), (4, 6), (6, 4)),
                     write=ImageLayout(begin="<boi>{h}*{w}<img>", levels=(level,), end="<eoi>"))
    stage = replace(TINY.stages["pretrain"], mix=(Use(data="own", task="t2i"), Use(data="own", task="caption")))
    published = replace(tokenizer.config, fit="sizes", weights=str(folder / "emu3.safetensors"))
    return replace(TINY, image_tokenizer=published, codebooks=(Codebook(name="visual", size=96),), layout=layout,
                   stages={"pretrain": stage}, image_in=SharedTable(), data={"own": ImageFolder(path=str(folder))},
                   judge="none")


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "emu3"
    train_run(recipe, folder)
    return folder


def test_it_trains_with_no_stage_for_the_tokenizer(recipe, run):
    tokenizer = load_tokenizer(run / "image_tokenizer")
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.state_dict().values(), tiny("emu3").state_dict().values()))
    shards = open_shards(run / "codes" / "own", fingerprint(tokenizer))
    grids = {shards[i].images[0].content.levels[0].grid for i in range(len(shards))}
    assert grids == {(4, 4), (4, 6)} and len(shards) == 5
    assert "adopt" in json.loads((run / "seconds.json").read_text())


def test_it_draws_and_reads_without_the_release(run, recipe, tmp_path):
    kept = tmp_path / "run"
    shutil.copytree(run, kept)
    system = open_run(kept)
    picture = draw(system, [[Text("photograph 1")]], [0])[0]
    assert picture.shape in {(32, 32, 3), (32, 48, 3), (48, 32, 3)} and picture.dtype == np.uint8
    assert isinstance(answer(system, [[Image(Pixels(whole_photographs()[1])), Text("what?")]])[0], str)


def test_a_recipe_with_it_survives_json_and_is_shown(recipe):
    assert recipe_from_json(recipe_to_json(recipe), "x") == recipe
    shown = "\n".join(show(recipe, colour=False))
    assert "emu3, 64 x 64 px" in shown and "96 codes of 4, published" in shown


def test_what_is_missing_is_said(recipe, tmp_path):
    nowhere = replace(recipe, image_tokenizer=replace(recipe.image_tokenizer, weights=""))
    with pytest.raises(ConfigError, match="image_tokenizer.weights"):
        encode_run(nowhere, tmp_path)
    gone = replace(recipe, image_tokenizer=replace(recipe.image_tokenizer, weights=str(tmp_path / "gone")))
    with pytest.raises(StoredError, match="no such file"):
        encode_run(gone, tmp_path)
    other = replace(recipe, codebooks=(Codebook(name="visual", size=95),))
    with pytest.raises(ConfigError, match="makes 96"):
        encode_run(other, tmp_path)
    assert not (tmp_path / "image_tokenizer").exists()
