"""A stage in which the image tokenizer learns from words through its codes' vectors (ETT), and what follows it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import losses
from tiny import TINY

from recipes.toys import ett
from unimm.checkpoint.read import newest
from unimm.config.check import ConfigError
from unimm.config.data import Use
from unimm.config.model import CodeVectors
from unimm.config.quantizers import IndexBackprop
from unimm.config.tokens import Codebook
from unimm.config.trains import Trains
from unimm.generate.use import answer, draw
from unimm.images.tokenizer import build_tokenizer, fingerprint, load_tokenizer
from unimm.layout import Layout
from unimm.pipeline import train_run
from unimm.sample import Image, Pixels, Text, sample
from unimm.stream.batches import make_batch
from unimm.stream.shards import open_shards
from unimm.system import new_model, open_run
from unimm.text import BytesTokenizer

READ = replace(TINY.stages["pretrain"], mix=(Use(data="chats"),), drop_context=0.0)
JOINT = replace(
    TINY, name="joint", image_in=CodeVectors(depth=2), codebooks=(Codebook(name="visual", size=32),),
    image_tokenizer=replace(TINY.image_tokenizer, quantizer=IndexBackprop(size=32, dim=8)),
    stages={"tokenizer": TINY.stages["tokenizer"], "alignment": READ,
            "semantic": replace(READ, reconstruction=0.25, train=Trains(rates={"tokenizer": 0.1})),
            "sft": replace(TINY.stages["sft"], mix=(Use(data="pairs", task="t2i"), Use(data="chats")))})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "joint"
    train_run(JOINT, folder)
    return folder


def kept(folder, part: str) -> dict[str, torch.Tensor]:
    return {name: held for name, held in load_file(newest(folder) / "model.safetensors").items() if part in name}


def test_the_loss_of_words_reaches_every_code_through_the_vectors_that_are_read():
    """With the pixels' loss taken away, encoder and codebook still have a gradient; without the joint stage none."""
    layout = Layout(JOINT.layout, BytesTokenizer(), JOINT.codebooks)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(JOINT.image_tokenizer)
    model = new_model(JOINT, layout, tokenizer).train()
    picture = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    shown = sample(Image(Pixels(picture), role="user"), Text("what?", role="user"), Text("red", True, "assistant"))
    batch = make_batch([[layout.render(shown)]], 160, layout.pad_id, layout.vocab.is_code)
    assert not any(p.requires_grad for p in tokenizer.parameters()), "a tokenizer is frozen where no stage says more"
    model.reconstruction = 1e-12
    tokenizer.requires_grad_(True)
    found = model(batch)
    found.total.backward()
    codebook = next(p for name, p in tokenizer.named_parameters() if name.startswith("quantizer."))
    reached = {name for name, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-9}
    assert (codebook.grad.abs().sum(1) > 0).all(), "index backpropagation moves all codes"
    assert {name.split(".")[0] for name in reached} == {"encoder", "quantizer"}, "words say nothing to the decoder"
    assert "reconstruction" in found.parts
    tokenizer.zero_grad()
    text = sample(Text("what?", role="user"), Text("red", True, "assistant"))
    model(make_batch([[layout.render(text)]], 160, layout.pad_id, layout.vocab.is_code)).total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in tokenizer.encoder.parameters()), "as other ranks do"


def test_the_tokenizer_changes_in_that_stage_and_in_no_other(run):
    before, tuned = (kept(run / stage, "image_input.tokenizer.") for stage in ("alignment", "semantic"))
    after = kept(run / "sft", "image_input.tokenizer.")
    first, second = load_tokenizer(run / "image_tokenizer"), load_tokenizer(run / "image_tokenizer-semantic")
    assert all(torch.equal(before[f"image_input.tokenizer.{name}"], t) for name, t in first.state_dict().items())
    assert all(torch.equal(tuned[name], after[name]) for name in tuned)
    assert all(torch.equal(tuned[f"image_input.tokenizer.{name}"], t) for name, t in second.state_dict().items())
    moved = {name.split(".")[2] for name in before if not torch.equal(before[name], tuned[name])}
    assert moved == {"encoder", "quantizer", "decoder"}
    assert {"loss/text", "loss/reconstruction"} <= set(_last(run / "semantic"))


def test_later_stages_read_codes_of_the_tokenizer_that_it_has_become(run):
    made_by = fingerprint(load_tokenizer(run / "image_tokenizer-semantic"))
    assert len(open_shards(run / "codes-semantic" / "pairs", made_by)) == 40
    assert open_shards(run / "codes" / "chats", fingerprint(load_tokenizer(run / "image_tokenizer")))
    assert not (run / "codes" / "pairs").exists(), "nothing is encoded that no stage reads"
    system = open_run(run)
    assert fingerprint(system.tokenizer) == made_by
    assert draw(system, [[Text("a red circle")]], [0])[0].shape == (32, 32, 3)
    shown = Image(Pixels(np.zeros((32, 32, 3), np.uint8)), role="user")
    assert isinstance(answer(system, [[shown, Text("what is this?", role="user")]])[0], str)


def test_what_a_model_says_of_pixels_is_what_it_says_of_their_codes(run):
    """Training reads pixels, sampling codes: the same vectors either way."""
    system = open_run(run)
    picture = np.random.default_rng(1).integers(256, size=(32, 32, 3), dtype=np.uint8)
    from unimm.generate.use import encoded

    shown = Image(Pixels(picture), role="user")
    with torch.no_grad():
        hidden = []
        for part in (shown, encoded(system, [shown])[0]):
            prompt = system.layout.prompt((part, Text("what?", role="user")))
            ids = torch.from_numpy(prompt.ids).long()[None]
            slots = tuple((0, slot) for slot in prompt.slots)
            slots = system.model.image_input.encoded(slots)[0] if slots else ()
            hidden.append(system.model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids), slots=slots))
    assert torch.allclose(*hidden, atol=1e-4)


def test_images_cannot_be_learned_while_their_codes_change():
    with pytest.raises(ConfigError, match="reconstruction is 0.25; it must be 0 where images are drawn"):
        replace(JOINT.stages["sft"], reconstruction=0.25)
    assert ett.recipe.stages["semantic"].reconstruction == 0.25, "the paper's alpha, at toy scale too"


def _last(stage) -> dict:
    import json

    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines() if "loss" in line][-1]


def test_losses_are_finite_in_every_stage(run):
    assert all(np.isfinite(losses(run / stage)).all() for stage in JOINT.stages)
