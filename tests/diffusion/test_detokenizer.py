"""The rectified flow: where it carries noise, what its conditions do, and that a run draws through it."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from tiny import TINY
from torch import nn

from unimm.api import Model
from unimm.config.check import ConfigError
from unimm.config.data import Shapes, Use
from unimm.config.images import ConvTokenizer
from unimm.config.model import Decoder, FlowDecoder, TokenizerDecoder
from unimm.config.stages import AdamW, Detokenize
from unimm.diffusion.detokenizer import Detokenization, FlowDetokenizer
from unimm.export import export_run
from unimm.generate.use import image_states
from unimm.images.tokenizer import TokenizerError, build_tokenizer, to_codes, to_pixels
from unimm.model.cache import RowCache
from unimm.pipeline import train_run
from unimm.plan.memory import measure
from unimm.sample import Codes, Image, Level, Pictures, Sample, Text
from unimm.serve.files import Order, draw_to_files
from unimm.system import open_run
from unimm.train.shares import shares
from unimm.weights import StoredError, fetch, keep

SMALL = FlowDecoder(scale=2, patch=4, width=8, layers=1, steps=3)


def tokenizer():
    torch.manual_seed(0)
    return build_tokenizer(ConvTokenizer(image=8, downsample=4, width=8)).eval()


def drawer(channels=None, **changes):
    """As if it had learned something: fresh, its last layer says nothing."""
    frozen = tokenizer()
    torch.manual_seed(1)
    flow = FlowDetokenizer(replace(SMALL, **changes), frozen, channels).eval()
    nn.init.normal_(flow.network.conv_out.weight, std=0.1)
    return flow


def pictures(n, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


POINTS, SHARES = torch.tensor([-1.0, 0.6]), torch.tensor([0.75, 0.25])


class Exact(nn.Module):
    """In the U-Net's place: what every value was on average, if it was one of POINTS in those SHARES, by Bayes's rule;
    `off` from that."""

    def __init__(self, off: float = 0.0):
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off))

    def forward(self, seen, time):
        z, sigma = seen[:, :12, :, :, None], (time / 1000)[:, None, None, None, None]
        likely = torch.softmax(SHARES.log() - (z - (1 - sigma) * POINTS).square() / (2 * sigma**2), -1)
        return SimpleNamespace(sample=(likely * POINTS).sum(-1) + self.off)


def of_points(network):
    """Drawn by a given network, whatever the picture; the conditions say nothing."""
    flow = drawer(patch=2, scale=1, steps=100)
    flow.network, read = network, torch.zeros(1, flow.tokenizer.dim, 2, 2)
    flow.tokenizer.contents = lambda images: list(images)
    flow.tokenizer.conditions = lambda contents: read.expand(len(contents), -1, -1, -1)
    return flow, read.expand(64, -1, -1, -1)


def test_the_flow_carries_noise_to_two_points_in_their_shares():
    flow, read = of_points(Exact())
    drawn = flow.sample(torch.randn(64, 3, 8, 8), read)
    nearest = (drawn[..., None] - POINTS).abs().min(-1)
    assert nearest.values.mean() < 0.02, "all that is drawn is one of the two, none their mean"
    assert nearest.indices.float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_the_loss_is_least_where_the_flow_is_right():
    images = POINTS[(torch.rand(512, 3, 8, 8) < 0.25).long()]

    def loss(network):
        torch.manual_seed(0)
        return Detokenization(of_points(network)[0]).losses(images, ())["flow"]

    right = Exact()
    loss(right).backward()
    assert abs(right.off.grad) < 0.01
    assert loss(Exact(0.2)) > loss(right) + 0.02 and loss(Exact(-0.2)) > loss(right) + 0.02


def test_the_sampler_follows_the_velocity_that_the_prediction_states():
    """Against the integral by hand, for a network that says a fixed linear function of what it sees."""
    flow = drawer(steps=4)
    flow.forward = lambda z, sigma, conditions: 0.5 * z - sigma[:, None, None, None]
    z = expected = torch.randn(2, 3, 16, 16, dtype=torch.float64).float()
    for now, later in ((1, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0)):
        expected = expected + (later - now) * (expected - (0.5 * expected - now)) / now
    torch.testing.assert_close(flow.sample(z, torch.zeros(2, 3, 2, 2)), expected)


def test_conditions_decide_the_picture_and_the_batch_does_not():
    flow = drawer()
    codes = to_codes(flow.tokenizer, list(pictures(5, 8)))
    together = to_pixels(flow, codes)
    assert [p.shape for p in together] == [(16, 16, 3)] * 5 and together[0].dtype == np.uint8
    for alone, picture in zip((to_pixels(flow, [c])[0] for c in codes), together):
        assert np.abs(alone.astype(int) - picture).max() <= 1, "but for rounding"
    assert np.array_equal(to_pixels(flow, codes[:1])[0], to_pixels(flow, codes[:1])[0])
    assert any((together[0] != other).any() for other in together[1:])


def test_a_picture_may_be_wider_than_it_is_high():
    flow = drawer()
    shape = flow.sample(torch.randn(1, 3, 16, 32), torch.randn(1, flow.tokenizer.dim, 2, 4)).shape
    assert shape == (1, 3, 16, 32)


def test_hidden_states_of_another_width_condition_it_as_well():
    flow = drawer(channels=24)
    noise, hidden = torch.randn(1, 3, 16, 16), torch.randn(2, 24, 2, 2)
    first, second = (flow.sample(noise, states[None]) for states in hidden)
    assert not torch.equal(first, second)


def test_the_loss_takes_pictures_at_the_larger_size_and_leaves_the_tokenizer_alone():
    flow = drawer()
    before = {name: t.clone() for name, t in flow.tokenizer.state_dict().items()}
    stage = Detokenization(flow)
    found = stage(Pictures(pictures(4), ("",) * 4))
    found.total.backward()
    assert set(found.parts) == {"flow"} and found.parts["flow"][1] == 4
    assert not any(name.startswith("detokenizer.tokenizer") for name in stage.state_dict())
    assert all(p.grad is None for p in flow.tokenizer.parameters())
    assert all(p.grad is not None for p in stage.parameters())
    assert all(torch.equal(t, before[name]) for name, t in flow.tokenizer.state_dict().items())


def test_saved_and_loaded_it_draws_the_same(tmp_path):
    flow = drawer()
    codes = to_codes(flow.tokenizer, list(pictures(2, 8)))
    keep(flow, tmp_path / "decoder")
    again = fetch(tmp_path / "decoder", "a decoder", Decoder, lambda made: FlowDetokenizer(made, tokenizer()))
    assert again.config == SMALL and not again.training
    assert all(map(np.array_equal, to_pixels(flow, codes), to_pixels(again, codes)))


def test_codes_of_another_tokenizer_and_patches_that_do_not_fit_are_refused():
    with pytest.raises(TokenizerError, match="codes 0 are"):
        to_pixels(drawer(), [Codes.of_grid(np.zeros((3, 3), int))])
    with pytest.raises(ConfigError, match="FlowDecoder.patch is 8; twice that must divide the 8 pixels"):
        drawer(patch=8)
    with pytest.raises(ConfigError, match="Detokenize trains a FlowDecoder, but the recipe has one of the two alone"):
        replace(DRAWN_LARGER, decoder=TokenizerDecoder())


DRAWN_LARGER = replace(
    TINY, name="larger", decoder=SMALL, data=TINY.data | {"large": Shapes(part="pairs", count=20, scale=2)},
    stages={"tokenizer": TINY.stages["tokenizer"],
            "decoder": Detokenize(mix=(Use(data="large"),), steps=2, batch=4, optimizer=AdamW(lr=1e-3), log_every=1,
                                  preview_every=2),
            "pretrain": TINY.stages["pretrain"]})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "larger"
    train_run(DRAWN_LARGER, folder)
    return folder


def test_a_run_with_a_decoder_draws_at_twice_the_size_whatever_asks(run, tmp_path):
    lines = [json.loads(line) for line in (run / "decoder" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss/flow" in line for line in lines)
    assert {"preview/psnr_enlarged", "preview/psnr_drawn"} <= set().union(*lines)
    model = Model.load(run)
    picture, _ = model.draw("a red circle", n=2, size=(32, 32))
    assert picture.shape == (64, 64, 3) and model.edit(picture, "a red circle", n=1)[0].shape == (64, 64, 3)
    Picture.fromarray(picture).save(tmp_path / "given.png")
    edit = Order(prompt="a cross", images=(str(tmp_path / "given.png"),), n=1)
    draw_to_files(run, [Order(prompt="a red circle", n=2), edit], tmp_path, {})
    drawn = np.asarray(Picture.open(tmp_path / "a-red-circle-0.png"))
    assert np.array_equal(drawn, picture)
    assert Picture.open(tmp_path / "given-a-cross-0.png").size == (64, 64)


def test_an_exported_run_takes_its_decoder_along_and_one_without_it_is_refused(run, tmp_path):
    export_run(run, tmp_path / "out")
    wanted = Model.load(run).draw("a cross", n=1)[0]
    assert np.array_equal(Model.load(tmp_path / "out").draw("a cross", n=1)[0], wanted)
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "image_decoder")
    with pytest.raises(StoredError, match="is not a trained decoder .*unimm train.*no config.json") as refusal:
        Model.load(copy)
    assert "\n" not in str(refusal.value)


def test_a_plan_measures_the_decoder_as_it_is():
    stage = DRAWN_LARGER.stages["decoder"]
    found = measure(DRAWN_LARGER, None, stage, "decoder")
    real = FlowDetokenizer(SMALL, build_tokenizer(DRAWN_LARGER.image_tokenizer))
    assert found.counts.parameters == sum(p.numel() for p in real.parameters())
    assert found.multiplied.body > 0 and shares(stage, 2).total == 4


HIDDEN = replace(
    TINY, name="hidden", decoder=replace(SMALL, condition="hidden"), data=DRAWN_LARGER.data,
    stages={"tokenizer": TINY.stages["tokenizer"], "pretrain": TINY.stages["pretrain"],
            "decoder": DRAWN_LARGER.stages["decoder"]})


@pytest.fixture(scope="module")
def hidden_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "hidden"
    train_run(HIDDEN, folder)
    return open_run(folder)


def test_hidden_states_are_those_that_the_codes_were_written_from(hidden_run):
    """Against reading id by id: the state behind position t - 1 is what the code at t is chosen by."""
    model, layout = hidden_run.model, hidden_run.layout
    codes = Codes((Level(np.arange(16).reshape(16, 1), (4, 4)),))
    parts = Text("a red circle"), Image(codes, learn=True)
    found, = image_states(model, layout, [parts])
    ids = layout.render(Sample(parts)).ids
    cache, read, before = RowCache(1, len(ids), model.device), [], torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        for at, i in enumerate(ids):
            table = model.backbone.get_input_embeddings()
            embedded, before = model.image_input(table, torch.tensor([[int(i)]]), before)
            read.append(model.read(embedded, np.array([at]), cache)[0, 0])
    where = np.flatnonzero(layout.vocab.is_code[ids]) - 1
    expected = torch.stack([read[at] for at in where]).mT.unflatten(1, (4, 4))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_decoder_of_hidden_states_sees_the_words_that_its_codes_do_not_say(hidden_run):
    codes = Codes((Level(np.arange(16).reshape(16, 1), (4, 4)),))
    said = [(Text(text), Image(codes, learn=True)) for text in ("a red circle", "two blue squares")]
    both = image_states(hidden_run.model, hidden_run.layout, said)
    network = hidden_run.drawer.network.conv_out
    assert hidden_run.drawer.read[0].in_channels == HIDDEN.backbone.width and network.weight.abs().sum() > 0
    red, blue = to_pixels(hidden_run.drawer, [codes, codes], both)
    assert red.shape == (64, 64, 3) and not np.array_equal(red, blue)
    alone, = to_pixels(hidden_run.drawer, [codes], both[:1])
    assert np.abs(alone.astype(int) - red).max() <= 1


def test_a_run_whose_decoder_reads_hidden_states_draws_edits_and_goes_on(hidden_run):
    model = Model(hidden_run)
    picture, _ = model.draw("a red circle", n=2)
    assert picture.shape == (64, 64, 3) and model.edit(picture, "a red circle", n=1)[0].shape == (64, 64, 3)
    written = model.go_on({"parts": [{"type": "text", "text": "a red circle"}]}, images=1)
    assert all(part["image"].shape == (64, 64, 3) for part in written["parts"] if part["type"] == "image")
    lines = [json.loads(line) for line in (hidden_run.folder / "decoder" / "metrics.jsonl").read_text().splitlines()]
    assert any("preview/psnr_drawn" in line for line in lines)


def test_a_decoder_of_hidden_states_is_trained_last():
    stages = HIDDEN.stages
    with pytest.raises(ConfigError, match="reads the language model's hidden states, .* must be the last"):
        replace(HIDDEN, stages={name: stages[name] for name in ("tokenizer", "decoder", "pretrain")})
    counts = measure(HIDDEN, None, stages["decoder"], "decoder").counts
    real = FlowDetokenizer(HIDDEN.decoder, build_tokenizer(HIDDEN.image_tokenizer), HIDDEN.backbone.width)
    assert counts.parameters == sum(p.numel() for p in real.parameters())
