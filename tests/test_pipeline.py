import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file
from tiny import TINY, shortened
from transformers import Qwen3Config, Qwen3ForCausalLM

from data.emoji import FontMissing, find_font
from unimm.checkpoint.read import newest
from unimm.config.check import ConfigError
from unimm.config.data import ImageFolder, Use
from unimm.config.model import PretrainedBackbone
from unimm.config.stages import AdamW
from unimm.config.tokens import Codebook
from unimm.config.trains import Lora, Trains
from unimm.errors import UserError
from unimm.generate.use import answer, draw, go_on
from unimm.images.tokenizer import build_tokenizer, load_tokenizer
from unimm.pipeline import encode_run, train_run
from unimm.recipe import load_recipe
from unimm.sample import Image, Pixels, Text
from unimm.serve.documents import parts_said
from unimm.status import read_status
from unimm.stream.shards import open_shards
from unimm.system import open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train_run(TINY, folder)
    return folder


def weights(folder: Path) -> bytes:
    return (newest(folder) / "model.safetensors").read_bytes()


def losses(stage: Path) -> list[float]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_recipe_becomes_a_run_with_every_stage_codes_and_previews(run):
    for stage in TINY.stages:
        assert len(losses(run / stage)) == 2 and np.isfinite(losses(run / stage)).all()
        assert Picture.open(next((run / stage / "previews").glob("*.png"))).size[0] > 100
    last = [json.loads(line) for line in (run / "sft" / "metrics.jsonl").read_text().splitlines()][-1]
    assert {"loss/text", "loss/image"} <= set(last)
    assert set(json.loads((run / "seconds.json").read_text())) == {"text", "encode", *TINY.stages}
    made_by = json.loads((run / "codes/pairs/manifest.json").read_text())["fingerprint"]
    assert len(open_shards(run / "codes" / "pairs", made_by)) == 40


# Those of published systems, in recipes/systems, begin from a release's weights: see tests/test_dialects*.py.
RECIPES = [p for p in sorted((Path(__file__).parents[1] / "recipes").glob("*.py")) if "recipe = " in p.read_text()]


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "demo"], ids=lambda p: p.stem)
def test_every_other_recipe_trains_two_steps_of_each_stage_and_draws(path, tmp_path):
    recipe = shortened(load_recipe(path))
    if recipe.judge == "emoji":
        try:
            find_font()
        except FontMissing as missing:
            pytest.skip(str(missing))
    train_run(recipe, tmp_path / "run")
    for stage in recipe.stages:
        assert len(losses(tmp_path / "run" / stage)) == 2
    assert draw(open_run(tmp_path / "run"), [[Text("a red circle")]], [0])[0].dtype == np.uint8


def test_a_finished_run_is_left_as_it_is(run):
    timed = ("seconds.json", "status.json")
    before, status = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in timed}, told(run)
    train_run(TINY, run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in timed} == before
    assert told(run) == status
    assert status["state"] == "done" and status["stage"] == "sft" and status["step"] == status["steps"] == 2


def told(run: Path) -> dict:
    status = read_status(run)
    return {name: value for name, value in status.items() if name != "time"}


def test_a_run_stopped_between_stages_continues_to_the_same_weights(run, tmp_path):
    train_run(TINY, tmp_path / "again", last="pretrain")
    assert not (tmp_path / "again" / "sft").exists()
    train_run(TINY, tmp_path / "again")
    assert weights(tmp_path / "again" / "sft") == weights(run / "sft")


def test_a_trained_system_draws_answers_and_replies(run):
    system = open_run(run)
    picture = draw(system, [[Text("a red circle")]] * 2, [0, 0])
    assert picture[0].shape == (32, 32, 3) and np.array_equal(*picture)
    shown = Image(Pixels(np.zeros((50, 40, 3), np.uint8)), role="user")
    assert isinstance(answer(system, [[shown, Text("what is this?", role="user")]])[0], str)
    for part in go_on(system, [shown, Text("what is this?", role="user")], images=1, text=False):
        assert part.role == "assistant"


def test_a_line_of_chat_names_its_pictures(tmp_path):
    Picture.new("RGB", (20, 10), "red").save(tmp_path / "my cat.png")
    image, text = parts_said(f"'{tmp_path}/my cat.png' what's this?".replace("what's", "what is"))
    assert image.content.array.shape == (10, 20, 3) and text == Text("what is this?", role="user")
    assert parts_said("it's a cat") == [Text("it's a cat", role="user")]
    with pytest.raises(UserError, match="none.png"):
        parts_said("none.png what is this?")


def test_codes_of_another_tokenizer_are_refused(run, tmp_path):
    """Defect 18: codes of one tokenizer trained with another."""
    train_run(TINY, tmp_path / "r", last="tokenizer")
    encode_run(TINY, tmp_path / "r", "pairs")
    weights = tmp_path / "r" / "image_tokenizer"
    other = replace(TINY, stages=TINY.stages | {"tokenizer": replace(TINY.stages["tokenizer"], seed=7)})
    train_run(other, tmp_path / "other", last="tokenizer")
    for file in weights.iterdir():
        file.write_bytes((tmp_path / "other" / "image_tokenizer" / file.name).read_bytes())
    with pytest.raises(UserError, match="fingerprint"):
        train_run(TINY, tmp_path / "r")


def test_a_run_goes_on_with_its_steps_divided_otherwise_but_with_nothing_else_to_learn(tmp_path):
    def pretrain(**fields):
        return replace(TINY, stages=TINY.stages | {"pretrain": replace(TINY.stages["pretrain"], **fields)})

    train_run(TINY, tmp_path, last="tokenizer")
    train_run(pretrain(micro=1, recompute=True, save_every=1), tmp_path, last="pretrain")
    assert sorted(p.name for p in (tmp_path / "pretrain").glob("step-*")) == ["step-00000001", "step-00000002"]
    with pytest.raises(ConfigError, match="holds a run of another recipe .other stages."):
        train_run(pretrain(steps=3), tmp_path)


def test_what_a_run_cannot_be_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(ConfigError, match="holds a run of another recipe .other sampling."):
        train_run(replace(TINY, sampling=replace(TINY.sampling, guidance=9.0)), run)
    with pytest.raises(ConfigError, match="no stage 'sfft'.*tokenizer, pretrain, sft"):
        train_run(TINY, run, last="sfft")
    with pytest.raises(ConfigError, match="has 500 codes, 1 a position, but the image tokenizer makes 512 codes"):
        train_run(replace(TINY, codebooks=(Codebook(name="visual", size=500),)), tmp_path / "size")
    with pytest.raises(ConfigError, match="no trained image tokenizer yet"):
        encode_run(TINY, tmp_path / "none")
    with pytest.raises(ConfigError, match="not a run"):
        open_run(tmp_path)


def test_a_lora_stage_is_sampled_and_continued_as_plain_weights(tmp_path):
    lora = Trains(parts=("new_rows", "norms"), lora=Lora(rank=2, alpha=6.0, dropout=0.1), rates={"lora_B": 4.0})
    stages = TINY.stages | {"pretrain": replace(TINY.stages["pretrain"], train=lora, optimizer=AdamW(lr=0.01))}
    recipe = replace(TINY, stages=stages)
    train_run(recipe, tmp_path / "run", last="pretrain")
    first = open_run(tmp_path / "run")
    assert draw(first, [[Text("a red circle")]], [0])[0].shape == (32, 32, 3)
    saved = load_file(first.checkpoint / "model.safetensors")
    layer = "backbone.model.layers.0.mlp.up_proj"
    a, b = (saved[f"{layer}.lora_{factor}.default.weight"] for factor in "AB")
    assert b.abs().max() > 0
    merged = saved[f"{layer}.base_layer.weight"] + 6.0 / 2 * b @ a
    torch.testing.assert_close(first.model.get_parameter(f"{layer}.weight"), merged)
    train_run(recipe, tmp_path / "run")
    second = open_run(tmp_path / "run")
    assert second.checkpoint.parent.name == "sft"
    assert draw(second, [[Text("a red circle")]], [0])[0].shape == (32, 32, 3)
    assert first.model.state_dict().keys() == second.model.state_dict().keys()
    assert not torch.equal(second.model.get_parameter(f"{layer}.weight"), merged)


def test_a_published_model_s_own_rows_and_layers_survive_lora_bit_for_bit(tmp_path):
    """SEED-LLaMA's condition, end to end: adapters and new rows learn, whatever was published stays."""
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
    published = Qwen3ForCausalLM(Qwen3Config(vocab_size=400, intermediate_size=64, tie_word_embeddings=False, **shape))
    published.bfloat16().save_pretrained(tmp_path / "published")
    train = Trains(parts=("new_rows",), lora=Lora(rank=2))
    stage = replace(TINY.stages["pretrain"], train=train, optimizer=AdamW(lr=0.01, weight_decay=0.5))
    recipe = replace(TINY, backbone=PretrainedBackbone(path=str(tmp_path / "published")),
                     image_in=replace(TINY.image_in, rows="mean"), stages=TINY.stages | {"pretrain": stage})
    train_run(recipe, tmp_path / "run", last="pretrain")
    system = open_run(tmp_path / "run")
    begun = load_file(system.checkpoint / "model.safetensors")
    text = system.layout.vocab.text_size
    assert 0 < text < system.layout.vocab.rows == len(begun["backbone.lm_head.weight"])
    for name, p in published.named_parameters():
        ours = system.model.backbone.get_parameter(name)
        assert ours.dtype == torch.float32  # what an optimizer updates is never bf16
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(ours[:text], p[:text].float())
        elif name.endswith("proj.weight"):
            assert torch.equal(begun[f"backbone.{name.removesuffix('.weight')}.base_layer.weight"], p.float())
            assert not torch.equal(ours, p.float())
        else:
            assert torch.equal(ours, p.float())


def test_a_tokenizer_s_stage_trains_the_parts_it_names(tmp_path):
    both = {name: replace(TINY.stages["tokenizer"], train=train) for name, train in
            (("tokenizer", Trains()), ("decoder", Trains(parts=("decoder",))))}
    encoders = []
    for name, stage in both.items():
        train_run(replace(TINY, stages={"tokenizer": stage}), tmp_path / name)
        encoders.append(load_tokenizer(tmp_path / name / "image_tokenizer"))
    torch.manual_seed(TINY.stages["tokenizer"].seed)
    fresh = build_tokenizer(TINY.image_tokenizer)
    moved = [[not torch.equal(p, fresh.get_parameter(name)) for name, p in tokenizer.named_parameters()
              if name.startswith("encoder")] for tokenizer in encoders]
    assert all(moved[0]) and not any(moved[1])
    assert any(not torch.equal(p, fresh.decoder.get_parameter(n)) for n, p in encoders[1].decoder.named_parameters())


def test_own_pictures_train_and_draw(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    with open(folder / "metadata.jsonl", "w") as file:
        for n, colour in enumerate(["red", "green", "blue", "white"] * 2):
            Picture.new("RGB", (40, 30), colour).save(folder / f"{n}.png")
            file.write(json.dumps({"file_name": f"{n}.png", "text": f"{colour} number {n}"}) + "\n")
        (folder / "broken.png").write_bytes(b"not a picture")
        file.write(json.dumps({"file_name": "broken.png", "text": "nothing"}) + "\n")
    stages = {name: replace(TINY.stages[name], mix=(Use(data="own", task=task),))
              for name, task in (("tokenizer", "as_is"), ("pretrain", "t2i"))}
    recipe = replace(TINY, data={"own": ImageFolder(path=str(folder))}, stages=stages, judge="none")
    train_run(recipe, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/codes/own/manifest.json").read_text())
    assert (manifest["counts"]["samples"], manifest["counts"]["skipped"]) == (8, 1)
    assert "broken.png" in json.dumps(manifest["problems"])
    assert draw(open_run(tmp_path / "run"), [[Text("red number 0")]], [0])[0].shape == (32, 32, 3)
