"""Runs whose image tokenizer is built on features that the run trains first."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import losses
from tiny import TINY

from unimm.checkpoint.read import newest
from unimm.config.check import ConfigError
from unimm.config.data import Use
from unimm.config.images import Adversarial, Contrastive, ConvTokenizer, DualTokenizer, Perceptual
from unimm.config.model import FreshVision, PretrainedVision
from unimm.config.quantizers import VQ, Product
from unimm.config.stages import Contrast
from unimm.config.tokens import Codebook
from unimm.generate.use import draw
from unimm.hardware import gpu_named
from unimm.images.tokenizer import build_tokenizer, load_tokenizer
from unimm.pipeline import train_run
from unimm.plan.plan import Cluster, plan
from unimm.published import vision
from unimm.recipe import recipe_from_json, recipe_to_json
from unimm.sample import Text
from unimm.show import show
from unimm.system import features_of, open_run

SEES = Contrast(mix=(Use(data="pairs"),), steps=2, batch=4, log_every=1, preview_every=2, save_every=2)
DUAL = replace(
    TINY, name="two views", features=FreshVision(patch=8, width=16, layers=1, heads=2),
    image_tokenizer=DualTokenizer(width=16, semantic=VQ(size=32, dim=4), pixel=VQ(size=32, dim=4),
                                  losses=(Perceptual(), Adversarial(after=1), Contrastive())),
    codebooks=(Codebook(name="visual", size=32),),
    stages={"features": SEES, "tokenizer": TINY.stages["tokenizer"], "pretrain": TINY.stages["pretrain"]})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dual"
    train_run(DUAL, folder)
    return folder


def test_features_then_a_tokenizer_of_two_views_then_a_language_model(run):
    for stage in DUAL.stages:
        assert len(losses(run / stage)) == 2
    tokenizer, features = load_tokenizer(run / "image_tokenizer"), features_of(DUAL, run)
    ours, theirs = tokenizer.features.state_dict(), features.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = load_file(run / "image_tokenizer" / "model.safetensors")
    assert not any("learned" in name for name in kept), "what the losses learned is no part of the tokenizer"
    trained = load_file(newest(run / "tokenizer") / "model.safetensors")
    assert trained["learned.adversarial.forwards"] == 2
    assert draw(open_run(run), [[Text("a red circle")]], [0])[0].shape == (32, 32, 3)


def test_a_run_draws_without_the_features_and_does_not_train_them_again(run, tmp_path):
    before = {p: p.read_bytes() for p in (run / "feature_network").iterdir()}
    train_run(DUAL, run)
    assert {p: p.read_bytes() for p in (run / "feature_network").iterdir()} == before
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "feature_network")
    assert draw(open_run(tmp_path / "run"), [[Text("a red circle")]], [0])[0].shape == (32, 32, 3)


def test_published_features_need_no_stage(run, tmp_path):
    recipe = replace(DUAL, features=PretrainedVision(path=str(run / "feature_network")),
                     stages={"tokenizer": DUAL.stages["tokenizer"]})
    train_run(recipe, tmp_path / "run")
    assert load_tokenizer(tmp_path / "run" / "image_tokenizer").features is not None


def test_what_the_stages_lack_is_refused_in_one_line(tmp_path):
    def stages(**changes):
        return replace(DUAL, **changes)

    with pytest.raises(ConfigError, match="fresh and no stage has trained them; put a stage Contrast before"):
        train_run(stages(stages={"tokenizer": TINY.stages["tokenizer"]}), tmp_path / "a")
    with pytest.raises(ConfigError, match="learns from captions, and 'edits' has none"):
        train_run(stages(stages={"features": replace(SEES, mix=(Use(data="edits"),))}), tmp_path / "d")
    several = ConvTokenizer(width=16, quantizer=Product(of=VQ(size=32, dim=4)))
    wrong = stages(features=None, image_tokenizer=several, stages={"tokenizer": TINY.stages["tokenizer"]})
    with pytest.raises(ConfigError, match="has 32 codes, 1 a position, but the image tokenizer makes 32 codes, 2 a"):
        train_run(wrong, tmp_path / "e")


def test_it_survives_json_is_shown_and_planned():
    assert recipe_from_json(recipe_to_json(DUAL), "x") == DUAL
    assert "4 images" in "\n".join(show(DUAL, colour=False))
    for index in ("shared", "separate"):
        tokenizer = replace(DUAL.image_tokenizer, index=index)
        cluster = Cluster(gpus=1, per_node=1, gpu=gpu_named("h200"), mfu=0.4)
        found = plan(replace(DUAL, image_tokenizer=tokenizer), cluster)
        features, own, _ = found["stages"]
        sizes = [sum(part["parameters"] for part in stage["parts"]) for stage in (features, own)]
        fresh = vision(DUAL.features, 32)
        assert sizes[0] == sum(p.numel() for p in fresh.parameters())
        assert sizes[1] == sum(p.numel() for p in build_tokenizer(tokenizer, fresh).parameters())
        assert features["seconds"] > 0 and own["seconds"] > 0
