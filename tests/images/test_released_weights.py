"""Reading a release's weights: names and shapes as released, one clear line for what is not, nothing executed."""

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from images.published import TINY, tiny
from safetensors.torch import load_file, save_file

from unimm.config.images import IBQ, Chameleon, LlamaGen, MoVQ
from unimm.errors import UserError
from unimm.images.released import spellings
from unimm.images.tokenizer import (
    TokenizerError,
    build_tokenizer,
    fingerprint,
    first_tokenizer,
    load_tokenizer,
    save_tokenizer,
)

KINDS = sorted(TINY)


def taming(side, config):
    """Names and shapes of an encoder or decoder as facebookresearch/chameleon's vqgan.py builds them, written out."""
    found = {}

    def conv(name, a, b, k=3):
        found[f"{side}.{name}.weight"], found[f"{side}.{name}.bias"] = (b, a, k, k), (b,)

    def norm(name, a):
        found[f"{side}.{name}.weight"] = found[f"{side}.{name}.bias"] = (a,)

    def block(name, a, b):
        norm(f"{name}.norm1", a), conv(f"{name}.conv1", a, b), norm(f"{name}.norm2", b), conv(f"{name}.conv2", b, b)
        if a != b:
            conv(f"{name}.nin_shortcut", a, b, 1)

    def attention(name, a):
        norm(f"{name}.norm", a)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", a, a, 1)

    widths = [config.width * m for m in config.multipliers]
    last, levels = widths[-1], len(widths)
    block("mid.block_1", last, last), attention("mid.attn_1", last), block("mid.block_2", last, last)
    if side == "encoder":
        conv("conv_in", 3, config.width), norm("norm_out", last), conv("conv_out", last, config.latent)
        at = config.width
        for n in range(levels):
            for i in range(config.blocks):
                block(f"down.{n}.block.{i}", at, widths[n])
                at = widths[n]
                if n in config.attention:
                    attention(f"down.{n}.attn.{i}", at)
            if n != levels - 1:
                conv(f"down.{n}.downsample.conv", at, at)
    else:
        conv("conv_in", config.latent, last), norm("norm_out", widths[0]), conv("conv_out", widths[0], 3)
        at = last
        for n in reversed(range(levels)):
            for i in range(config.blocks + 1):
                block(f"up.{n}.block.{i}", at, widths[n])
                at = widths[n]
                if n in config.attention:
                    attention(f"up.{n}.attn.{i}", at)
            if n:
                conv(f"up.{n}.upsample.conv", at, at)
    return found


def released(config):
    return {**taming("encoder", config), **taming("decoder", config),
            "quantize.embedding.weight": (config.size, config.dim),
            "quant_conv.weight": (config.dim, config.latent, 1, 1), "quant_conv.bias": (config.dim,),
            "post_quant_conv.weight": (config.latent, config.dim, 1, 1), "post_quant_conv.bias": (config.latent,)}


@pytest.mark.parametrize("config", [Chameleon(), IBQ(), IBQ(size=16384, image=256)], ids=lambda c: f"{c.kind}{c.size}")
def test_names_and_shapes_are_those_that_the_release_builds(config):
    """But for attention, whose convolutions of one pixel are linear layers here."""
    with torch.device("meta"):
        ours = {name: tuple(t.shape) for name, t in spelled(build_tokenizer(config), -1).items()}
    wanted = released(config)
    assert ours.keys() == wanted.keys()
    assert all(wanted[name] == shape or ".attn" in name and wanted[name] == (*shape, 1, 1)
               for name, shape in ours.items())


def test_llamagen_is_spelled_as_the_release_spells_it():
    """LlamaGen's and Janus's own vq_model.py: `conv_blocks` with `res`, numbered as they run."""
    with torch.device("meta"):
        names = set(spellings(build_tokenizer(LlamaGen()))[0].values())
    run = {**taming("encoder", LlamaGen()), **taming("decoder", LlamaGen())}
    assert len(names) == len(run) + 5
    assert names >= {
        "encoder.conv_blocks.2.res.1.norm1.weight", "encoder.conv_blocks.4.attn.1.proj_out.bias",
        "encoder.conv_blocks.0.downsample.conv.bias", "encoder.mid.1.norm.bias",
        "decoder.conv_blocks.0.res.2.conv1.bias", "decoder.conv_blocks.3.upsample.conv.bias",
        "quantize.embedding.weight"}


@pytest.mark.parametrize("config, millions", [(MoVQ(), 270), (MoVQ(width=128), 67), (MoVQ(width=128, blocks=4), 102)])
def test_movq_has_as_many_parameters_as_its_releases_are_named_for(config, millions):
    with torch.device("meta"):
        tokenizer = build_tokenizer(config)
    assert round(sum(p.numel() for p in tokenizer.parameters()) / 1e6) == pytest.approx(millions, abs=1)


def spelled(tokenizer, way=0):
    """The tokenizer's tensors by a release's names."""
    names = spellings(tokenizer)[way]
    return {names[name]: t.contiguous() for name, t in tokenizer.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_back_from_each_of_its_spellings(kind, tmp_path):
    tokenizer = tiny(kind)
    for way in range(len(spellings(tokenizer))):
        file = tmp_path / f"{way}.safetensors"
        beside = {"loss.logvar": torch.ones(1), "encoder.conv_in.weight": tokenizer.encoder.conv_in.weight.data.clone()}
        save_file({**beside, **spelled(tokenizer, way)}, file)
        again = first_tokenizer(replace(tokenizer.config, weights=str(file)))
        assert not again.training and fingerprint(again) == fingerprint(tokenizer)


def test_moving_averages_are_preferred_for_ibq_and_passed_over_for_movq(tmp_path):
    for kind, mean in (("ibq", "model_ema."), ("movq", "ema_")):
        tokenizer = tiny(kind)
        plain = {name: t.clone() for name, t in spelled(tokenizer, -1).items()}
        means = {mean + name.replace(".", ""): t + 1 for name, t in plain.items()}
        save_file({**plain, **means, f"{mean}decay": torch.ones(())}, tmp_path / "w.safetensors")
        again = first_tokenizer(replace(tokenizer.config, weights=str(tmp_path / "w.safetensors")))
        wanted = plain["quant_conv.bias"] + (kind == "ibq")
        assert torch.equal(again.quant_conv.bias.data, wanted)


def refusal(config):
    with pytest.raises(UserError) as why:
        first_tokenizer(config)
    assert "\n" not in str(why.value)
    return str(why.value)


@pytest.fixture
def weights(tmp_path):
    """(config, file, tensors) of a tiny Chameleon"""
    tokenizer, file = tiny("chameleon"), tmp_path / "vqgan.safetensors"
    save_file(spelled(tokenizer), file)
    return replace(tokenizer.config, weights=str(file)), file, load_file(file)


@pytest.mark.parametrize("change, said", [
    (lambda t: t.pop("decoder.up.1.block.0.conv1.bias"), "lacks 1 of .* decoder.up.1.block.0.conv1.bias; decoder=Fa"),
    (lambda t: t.pop("quant_conv.bias"), "lacks 1 of .* quant_conv.bias; give the release's whole file"),
    (lambda t: t.update({"encoder.extra": torch.ones(1)}), "holds 1 tensors .* encoder.extra"),
    (lambda t: t.update({"quant_conv.bias": torch.ones(3)}), r"quant_conv.bias is \(3,\), .* has \(8,\)"),
    (lambda t: t.pop("encoder.conv_in.weight"), "one tensor named ...encoder.conv_in.weight, here are none"),
    (lambda t: t.update({"x.encoder.conv_in.weight": torch.ones(1)}), "here are several"),
], ids=["decoder missing", "missing", "extra", "shape", "not one", "two"])
def test_what_is_not_the_architectures_is_named_in_one_line(weights, change, said):
    config, file, tensors = weights
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(TokenizerError, match=said):
        first_tokenizer(config)
    assert str(file) in refusal(config)


def test_paths_without_whole_weights_are_refused(weights, tmp_path):
    config, file, _ = weights
    assert "no such file" in refusal(replace(config, weights=str(tmp_path / "none")))
    file.write_bytes(file.read_bytes()[:-1000])
    assert "damaged or cut short" in refusal(config)
    file.unlink()
    assert "no weights" in refusal(replace(config, weights=str(tmp_path)))
    index = tmp_path / "model.safetensors.index.json"
    for text, said in (("{", "is damaged"), ('{"weight_map": 3}', "no weight_map"),
                       (json.dumps({"weight_map": {"a": "x-1.safetensors"}}), "the shard x-1.safetensors is missing"),
                       (json.dumps({"weight_map": {"a": "../../x"}}), "the shard ../../x is missing")):
        index.write_text(text)
        assert said in refusal(replace(config, weights=str(tmp_path)))


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickles_are_read_only_when_asked_for_and_run_nothing(weights, tmp_path):
    config, _, tensors = weights
    file, trace = tmp_path / "vqgan.ckpt", tmp_path / "executed"
    torch.save({"state_dict": tensors, "step": 3}, file)
    asked = replace(config, weights=str(file), unpickle=True)
    assert "can run code" in refusal(replace(asked, unpickle=False))
    assert torch.equal(first_tokenizer(asked).quant_conv.bias.data, tensors["quant_conv.bias"])
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in refusal(asked)
    torch.save({"state_dict": tensors, "callbacks": Attack(trace)}, file)
    assert "holds more than tensors" in refusal(asked)
    assert "can run code" in refusal(replace(asked, unpickle=False))
    torch.save({1: torch.ones(2), "a": 3}, file)
    assert "here are none" in refusal(asked)
    file.write_bytes(pickle.dumps(Attack(trace)))
    assert "refused" in refusal(asked) or "damaged" in refusal(asked)
    assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists()  # so the attack was a real one


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_keeps_it_and_where_it_came_from_is_no_part_of_its_fingerprint(kind, tmp_path):
    tokenizer = tiny(kind)
    save_tokenizer(tokenizer, tmp_path / "it")
    again = load_tokenizer(tmp_path / "it")
    assert again.config == tokenizer.config and fingerprint(again) == fingerprint(tokenizer)
    again.config = replace(again.config, weights="elsewhere", unpickle=True)
    assert fingerprint(again) == fingerprint(tokenizer)
    again.config = replace(again.config, image=128)
    assert fingerprint(again) != fingerprint(tokenizer)
