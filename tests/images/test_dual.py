"""Two views of one picture: one index or two levels, features frozen or tuned, and the way to disk."""

import json

import numpy as np
import pytest
import torch
from images.published import encode

from unimm.config.check import ConfigError
from unimm.config.images import DualTokenizer
from unimm.config.model import FreshVision
from unimm.config.quantizers import VQ
from unimm.images.tokenizer import (
    TokenizerError,
    build_tokenizer,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    to_codes,
    to_pixels,
    to_tensor,
)
from unimm.published import vision
from unimm.sample import Codes

SHARED = DualTokenizer(image=16, downsample=4, width=16, semantic=VQ(size=24, dim=4), pixel=VQ(size=24, dim=6),
                       semantic_weight=0.5)
SEPARATE = DualTokenizer(image=16, downsample=4, width=16, index="separate", semantic=VQ(size=12, dim=4),
                         pixel=VQ(size=24, dim=6))


def features(patch=8):
    torch.manual_seed(1)
    return vision(FreshVision(patch=patch, width=16, layers=1, heads=2), 16)


def dual(config=SHARED, patch=8, **changes):
    torch.manual_seed(0)
    return build_tokenizer(DualTokenizer(**vars(config) | changes), features(patch)).train()


def pictures(count=8, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


def learn(tokenizer, steps=30, lr=3e-3):
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        found = tokenizer.train()(to_tensor(pictures(16)))
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        losses.append({name: loss.item() for name, loss in found.losses.items()})
    return losses


def test_one_index_is_the_least_joint_distance_and_addresses_both_codebooks():
    tokenizer = dual()
    learn(tokenizer, 5)
    tokenizer.eval()
    images = to_tensor(pictures())
    semantic, pixel = tokenizer.quantizer.codebook.split([4, 6], dim=1)
    assert semantic.shape == (24, 4) and pixel.shape == (24, 6)
    with torch.no_grad():
        meant = tokenizer.meant(tokenizer._seen(images))
        meant = torch.nn.functional.interpolate(meant, (4, 4), mode="bilinear", antialias=True)
        drawn = tokenizer.encoder(images)
    ids = encode(tokenizer, images)
    for b in range(8):
        for p in range(16):
            s, z = meant[b, :, p // 4, p % 4].double(), drawn[b, :, p // 4, p % 4].double()
            # The semantic codebook is kept times sqrt(semantic_weight).
            far = 0.5 * (s - semantic.double() / 0.5**0.5).square().sum(1) + (z - pixel.double()).square().sum(1)
            assert far[ids[b, p]].item() == pytest.approx(far.min().item(), rel=1e-4)
    vectors = tokenizer.vectors_of(ids)
    assert torch.equal(vectors, torch.cat([semantic[ids], pixel[ids]], -1))
    found = tokenizer(images)
    assert torch.equal(found.ids, ids) and torch.equal(found.vectors, vectors)
    assert torch.equal(tokenizer.code_vectors()["visual"], torch.cat([semantic, pixel], 1))
    assert tokenizer.books == {"visual": (24, 1)}


@pytest.mark.parametrize("patch", [4, 8])
def test_two_levels_are_written_in_order_each_on_its_own_grid(patch):
    tokenizer = dual(SEPARATE, patch)
    learn(tokenizer, 3)
    tokenizer.eval()
    codes = to_codes(tokenizer, pictures())
    side = 16 // patch
    assert list(tokenizer.books.items()) == [("semantic", (12, 1)), ("visual", (24, 1))]
    assert [(level.grid, len(level.ids)) for level in codes[0].levels] == [((side, side), side**2), ((4, 4), 16)]
    found = tokenizer(to_tensor(pictures()))
    assert torch.allclose(found.images, tokenizer.pictures(codes), atol=1e-5)
    semantic, pixel = tokenizer.semantic.codebook, tokenizer.quantizer.codebook
    vectors = tokenizer.code_vectors()
    assert list(vectors) == ["semantic", "visual"]
    assert torch.equal(vectors["semantic"], semantic) and torch.equal(vectors["visual"], pixel)
    conditions = tokenizer.conditions(codes)
    assert conditions.shape == (8, 10, 4, 4)
    assert torch.equal(conditions[3, 4:, 1, 2], pixel[codes[3].levels[1].ids[6, 0]])
    own = semantic[codes[3].levels[0].ids[:, 0]].T.reshape(1, 4, side, side)
    own = torch.nn.functional.interpolate(own, (4, 4), mode="bilinear", antialias=True)
    assert torch.allclose(conditions[3, :4], own[0])
    with pytest.raises(TokenizerError, match=rf"1 level.s.*has one of \({side**2}, 1\) below 12 and one of \(16, 1\) "
                                             "below 24"):
        to_pixels(tokenizer, [Codes(codes[0].levels[1:])])
    with pytest.raises(TokenizerError, match="2 level"):
        to_pixels(tokenizer, [Codes(codes[0].levels[::-1])])


@pytest.mark.parametrize("config", [SHARED, SEPARATE], ids=lambda c: c.index)
def test_each_level_changes_what_is_drawn_and_both_reconstructions_are_learned(config):
    tokenizer = dual(config)
    losses = learn(tokenizer, 60)
    assert losses[-1]["mse"] < 0.8 * losses[0]["mse"] and losses[-1]["semantic"] < 0.7 * losses[0]["semantic"]
    if config.index == "separate":
        codes = to_codes(tokenizer.eval(), pictures(2))
        other = [Codes((codes[1 - n].levels[0], codes[n].levels[1])) for n in range(2)]
        assert not np.array_equal(to_pixels(tokenizer, codes)[0], to_pixels(tokenizer, other)[0])


@pytest.mark.parametrize("config", [SHARED, SEPARATE], ids=lambda c: c.index)
def test_features_are_bit_identical_after_training_unless_they_are_tuned(config):
    start = features()
    for tune in (False, True):
        tokenizer = dual(config, tune=tune)
        learn(tokenizer, 3)
        same = [torch.equal(p, q) for p, q in zip(tokenizer.features.parameters(), start.parameters(), strict=True)]
        assert all(same) if not tune else not any(same[:-2])
        if tune:
            assert all(torch.equal(p, q) for p, q in zip(tokenizer.taught.parameters(), start.parameters()))
    assert all(p.requires_grad for p in start.parameters()), "the tokenizer has a copy"


@pytest.mark.parametrize("config", [SHARED, DualTokenizer(**vars(SEPARATE) | {"tune": True})], ids=lambda c: c.index)
def test_a_saved_tokenizer_needs_the_features_no_more(config, tmp_path):
    tokenizer = dual(config)
    learn(tokenizer, 2)
    save_tokenizer(tokenizer, tmp_path / "it")
    assert json.loads((tmp_path / "it" / "features" / "config.json").read_text())["model_type"] == "janus_vision_model"
    again = load_tokenizer(tmp_path / "it")
    assert fingerprint(again) == fingerprint(tokenizer) and again.config == config
    assert to_codes(again, pictures()) == to_codes(tokenizer.eval(), pictures())


def test_what_a_dual_tokenizer_lacks_is_refused_in_one_line():
    with pytest.raises(TokenizerError, match="built on features, and there are none; set features"):
        build_tokenizer(SHARED)
    with pytest.raises(ConfigError, match="as pixel but for dim"):
        DualTokenizer(semantic=VQ(size=24), pixel=VQ(size=32))
