"""A whole run of a system that reads images as features and writes codes under a head of their own."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from model.released import theirs
from safetensors.torch import load_file
from test_pipeline import losses
from tiny import TINY

from unimm.config.data import Use
from unimm.config.model import FreshVision, PretrainedBackbone, PretrainedVision, SeparateHead, VisionFeatures
from unimm.config.tokens import Codebook, Continuous, ImageLayout, LevelLayout
from unimm.config.trains import Trains
from unimm.generate.use import answer, draw, encoded, go_on
from unimm.images.tokenizer import fingerprint, load_tokenizer
from unimm.layout import LayoutError
from unimm.pictures import from_png
from unimm.pipeline import _seen, train_run
from unimm.recipe import recipe_from_json, recipe_to_json
from unimm.sample import Image, Pixels, Sample, Text
from unimm.show import show
from unimm.stream.shards import open_shards
from unimm.system import open_run

READ = ImageLayout(begin="<boi>", levels=(LevelLayout(space="features"),), end="<eoi>")
JANUS = replace(
    TINY, name="a small Janus",
    codebooks=(Codebook(name="visual", size=512, shared=False),),
    continuous=(Continuous(name="features", channels=16, placeholder="<image_placeholder>"),),
    layout=replace(TINY.layout, write=replace(TINY.layout.write, stop="count"), read=READ, unconditional="pad"),
    image_in=VisionFeatures(encoder=FreshVision(patch=8, width=16, layers=1, heads=2), image=32),
    image_out=SeparateHead(width=24),
    stages={"tokenizer": TINY.stages["tokenizer"],
            "pretrain": replace(TINY.stages["pretrain"], mix=(Use(data="pairs", task="t2i"), Use(data="chats"))),
            "sft": replace(TINY.stages["sft"], train=Trains(frozen=("vision",), rows_learned=True))})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "janus"
    train_run(JANUS, folder)
    return folder


def test_it_trains_text_and_image_with_its_encoder_frozen_where_a_stage_says_so(run):
    assert len(losses(run / "sft")) == 2 and np.isfinite(losses(run / "sft")).all()
    first, second = (load_file(next((run / stage).glob("step-*")) / "model.safetensors")
                     for stage in ("pretrain", "sft"))
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert {name for name in first if name.startswith("image_input.vision.")} <= same
    assert not {"image_input.aligner.fc1.weight", "image_input.codes.weight", "image_output.vision_head.weight"} & same


def test_pictures_lie_beside_codes_where_they_are_read_and_nowhere_else(run):
    made_by = fingerprint(load_tokenizer(run / "image_tokenizer"))
    read, drawn = (open_shards(run / "codes" / name, made_by) for name in ("chats", "edits"))
    image = read[0].images[0]
    assert from_png(image.seen).shape == (32, 32, 3) and image.content.levels[0].grid == (4, 4)
    assert drawn[0].images[0].seen is not None
    only = replace(JANUS, stages={"pretrain": replace(JANUS.stages["pretrain"], mix=(Use(data="pairs", task="t2i"),))})
    assert _seen(only, "pairs") == () and _seen(JANUS, "chats") == (32, [127, 127, 127])


def test_it_draws_answers_and_edits(run):
    system = open_run(run)
    pictures = draw(system, [[Text("a red circle")], [Text("two blue squares")]], [0, 1])
    assert [p.shape for p in pictures] == [(32, 32, 3)] * 2
    shown = Image(Pixels(np.zeros((50, 40, 3), np.uint8)), role="user")
    assert isinstance(answer(system, [[shown, Text("what is this?", role="user")]])[0], str)
    assert draw(system, [[shown, Text("make it red", role="user")]], [0])[0].shape == (32, 32, 3)
    said = go_on(system, [shown, Text("draw it", role="user")], images=1, text=False)
    assert all(part.role == "assistant" for part in said)


def test_what_it_sees_changes_what_it_says_next(run):
    system = open_run(run)

    def state(colour: int) -> torch.Tensor:
        picture = Image(Pixels(np.full((32, 32, 3), colour, np.uint8)), role="user")
        prompt = system.layout.prompt(encoded(system, [picture, Text("what?", role="user")]))
        ids = torch.from_numpy(prompt.ids).long()[None]
        with torch.no_grad():
            return system.model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids),
                                       slots=tuple((0, slot) for slot in prompt.slots))[0, -1]

    assert (state(0) - state(255)).abs().max() > 1e-4


def test_it_survives_json_and_is_shown():
    assert recipe_from_json(recipe_to_json(JANUS), "x") == JANUS
    shown = "\n".join(show(JANUS, colour=False))
    assert "vision_features" in shown and "separate_head" in shown and "... <image_placeholder>" in shown


def test_codes_without_pictures_are_refused_with_the_remedy(run):
    system = open_run(run)
    shards = open_shards(run / "codes" / "chats", fingerprint(system.tokenizer))
    blind = Sample(tuple(replace(p, seen=None) if isinstance(p, Image) else p for p in shards[0].parts))
    with pytest.raises(LayoutError, match="encode the data again"):
        system.layout.render(blind)


def test_a_run_needs_the_release_that_it_began_with_no_more(tmp_path):
    release = tmp_path / "release"
    theirs("janus").save_pretrained(release)
    recipe = replace(JANUS, backbone=PretrainedBackbone(path=str(release)),
                     continuous=(replace(JANUS.continuous[0], channels=24),),
                     image_in=replace(JANUS.image_in, encoder=PretrainedVision(path=str(release))),
                     stages={name: JANUS.stages[name] for name in ("tokenizer", "pretrain")})
    train_run(recipe, tmp_path / "run")
    before = load_file(release / "model.safetensors")["model.vision_model.post_layernorm.bias"]
    shutil.rmtree(release)
    system = open_run(tmp_path / "run")
    assert (system.model.image_input.vision.post_layernorm.bias - before).abs().max() < 0.02
    assert draw(system, [[Text("a red circle")]], [0])[0].shape == (32, 32, 3)
