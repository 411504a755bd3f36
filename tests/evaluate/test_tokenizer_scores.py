"""An image tokenizer by itself: a run that has no more yet, and a tokenizer's folder."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY

from data.shapes_scores import tokenizer_scores
from unimm.cli.main import run
from unimm.config.check import ConfigError
from unimm.config.model import FreshVision
from unimm.evaluate.scores import look_up
from unimm.evaluate.tokenizer_scores import Subject
from unimm.images.measure import frechet
from unimm.images.tokenizer import build_tokenizer, load_tokenizer, save_tokenizer, to_tensor
from unimm.published import vision
from unimm.recipe import recipe_to_json
from unimm.system import open_run
from unimm.text import train_sentencepiece


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose tokenizer is there, and no language model."""
    made = tmp_path_factory.mktemp("runs") / "early"
    torch.manual_seed(0)
    save_tokenizer(build_tokenizer(TINY.image_tokenizer), made / "image_tokenizer")
    (made / "recipe.json").write_text(recipe_to_json(TINY))
    texts = ["a small red circle above a large blue square", "two green crosses at the left", "how many are there?"] * 9
    (made / "text.model").write_bytes(train_sentencepiece(texts, 300).model)
    return made


def test_a_run_without_a_language_model_is_scored_by_its_tokenizer_alone(folder, capsys):
    assert run(["eval", str(folder), "--count", "5"]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert set(report["tokenizer"]) == {"judge", "psnr", "ssim", "tokens", "codes", "rfid", "words", "probe"}
    assert not {"t2i", "vqa", "edit"} & set(report) and set(report["parameters"]) == {"image_tokenizer"}
    assert report["counts"]["tokenizer"]["probe"]["colour"] > 40 and report["tokenizer"]["tokens"]["mean"] == 16
    page = (folder / "report.html").read_text()
    for words in ("Words still read", "Zipf slope", "Colour read linearly", "of untrained features"):
        assert words in page
    with pytest.raises(ConfigError, match="no language model yet"):
        open_run(folder)


def test_a_tokenizers_folder_gets_the_same_measures(folder, tmp_path, capsys):
    tokenizer = load_tokenizer(folder / "image_tokenizer")
    save_tokenizer(tokenizer, tmp_path / "alone")
    assert run(["eval", str(tmp_path / "alone"), "--count", "5"]) == 0
    report = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert report["tokenizer"] == tokenizer_scores(Subject(tokenizer), 5, 0).values["tokenizer"]
    assert load_tokenizer(tmp_path / "alone").config == tokenizer.config, "the folder is still a tokenizer's"


def test_pictures_are_compared_by_the_features_of_any_encoder(folder, tmp_path):
    torch.manual_seed(0)
    encoder = vision(FreshVision(patch=8, width=16, layers=1, heads=2), 16).eval()
    encoder.save_pretrained(tmp_path / "seen")
    tokenizer = load_tokenizer(folder / "image_tokenizer")
    scores = tokenizer_scores(Subject(tokenizer, features=tmp_path / "seen"), 20, 0)
    sides = []
    for name in ("given", "got"):
        shown = [getattr(item, name) for item in scores.reconstructions]
        from unimm.pictures import resized

        with torch.no_grad():
            seen = encoder(to_tensor([resized(picture, (16, 16)) for picture in shown])).last_hidden_state
        sides.append(seen.mean(1).double().numpy())
    assert look_up(scores.values, "tokenizer.rfid.features") == pytest.approx(frechet(*sides), abs=1e-3)
    assert look_up(scores.values, "tokenizer.rfid.random") > 0


def test_pictures_are_brought_to_the_tokenizers_size_before_they_are_compared():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(replace(TINY.image_tokenizer, image=64)).eval()
    scores = tokenizer_scores(Subject(tokenizer), 4, 0)
    assert {item.given.shape for item in scores.reconstructions} == {(64, 64, 3)}
    assert np.isfinite(scores.values["tokenizer"]["psnr"]) and scores.values["tokenizer"]["tokens"]["mean"] == 64
