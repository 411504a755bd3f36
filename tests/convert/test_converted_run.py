"""A converted checkpoint is a run: it opens, draws, answers, and its first stage starts from the release's weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from convert.releases import plain, recipe_of, unified
from transformers import AutoModelForCausalLM

from unimm.config.data import ImageFolder, Use
from unimm.config.stages import AdamW, NextToken
from unimm.config.trains import Trains
from unimm.convert.convert import bring
from unimm.generate.use import answer, draw
from unimm.images.tokenizer import build_tokenizer, save_tokenizer
from unimm.pipeline import train_run
from unimm.recipe import load_recipe
from unimm.sample import Image, Pixels, Text
from unimm.system import open_run


@torch.no_grad()
def test_the_language_model_gives_the_release_s_logits(tmp_path):
    plain("llama tied", tmp_path / "release")
    recipe = recipe_of("llama")
    bring(str(tmp_path / "release"), tmp_path / "run", recipe)
    save_tokenizer(build_tokenizer(recipe.image_tokenizer), tmp_path / "run" / "image_tokenizer")  # as a stage does
    system = open_run(tmp_path / "run")
    ids = torch.arange(20)[None]
    hidden = system.model.hidden(ids, torch.arange(20)[None], torch.ones_like(ids))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "release", dtype=torch.float32)
    want = again(ids).logits[0]
    assert (system.model.head((slice(0, 256),))(hidden[0], None) - want[:, :256]).abs().max() <= 1e-5
    table = system.model.backbone.get_input_embeddings().weight
    assert torch.equal(table[:259], again.get_input_embeddings().weight[:259])
    assert table[259:].std() > 0.01 and system.model.backbone.get_output_embeddings().weight is table


@pytest.fixture(scope="module", params=["chameleon", "emu3", "janus"])
def run(request, tmp_path_factory):
    """A run of a whole release, with one language stage of three steps."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    unified(kind, folder / "release", torch.float32)
    (folder / "pictures").mkdir()
    from PIL import Image as Picture

    random = np.random.default_rng(0)
    with open(folder / "pictures" / "metadata.jsonl", "w") as file:
        for n in range(6):
            Picture.fromarray(random.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"pictures/{n}.png")
            file.write(json.dumps({"file_name": f"{n}.png", "text": f"picture {n}"}) + "\n")
    stage = NextToken(mix=(Use(data="own", task="t2i"), Use(data="own", task="caption")), steps=3, seq_len=64,
                      step_tokens=512, optimizer=AdamW(lr=3e-3), drop_context=0.0, log_every=1, preview_every=3,
                      save_every=3, train=Trains())
    recipe = replace(recipe_of(kind), data={"own": ImageFolder(path=str(folder / "pictures"))}, stages={"sft": stage},
                     judge="none")
    bring(str(folder / "release"), folder / "run", recipe)
    return kind, folder


def test_it_draws_and_answers_before_any_training(run):
    kind, folder = run
    (folder / "release").rename(folder / "gone")
    system = open_run(folder / "run")
    picture = np.zeros((32, 32, 3), np.uint8)
    assert isinstance(answer(system, [[Image(Pixels(picture), role="user"), Text("what?", role="user")]])[0], str)
    if kind != "chameleon":  # transformers' has no decoder
        assert draw(system, [[Text("a ring")]], [0])[0].shape == (32, 32, 3)
    (folder / "gone").rename(folder / "release")


def test_three_steps_from_it_are_finite_fall_and_move_image_rows(run):
    kind, folder = run
    before = {name: t.clone() for name, t in open_run(folder / "run").model.state_dict().items()}
    train_run(load_recipe(folder / "run"), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "sft" / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss/image" in line]
    assert len(losses) == 3
    for part in ("loss/text", "loss/image"):
        values = [line[part] for line in losses]
        assert np.isfinite(values).all() and values[-1] < values[0]
    system = open_run(folder / "run")
    moved = {name: (t - before[name]).abs().amax(-1) for name, t in system.model.state_dict().items() if t.ndim > 1
             and before[name].is_floating_point()}
    if kind == "janus":
        assert (moved["image_output.vision_head.weight"] > 0).all() and moved["image_input.codes.weight"].max() > 0
    else:
        book = system.layout.vocab.ranges["visual"]
        rows = moved["backbone.lm_head.weight"][book.start:book.stop]
        assert (rows > 0).all()
