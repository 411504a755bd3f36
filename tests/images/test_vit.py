"""Tokens that are no grid: prefixes of causal queries, counts that follow the content, latents read causally."""

import numpy as np
import pytest
import torch
from images.published import decode

from data.shapes import evaluation_scenes, pairs
from data.shapes_world import draw
from unimm.config.check import ConfigError
from unimm.config.images import ViTTokenizer
from unimm.config.quantizers import FSQ, VQ, Residual, Unquantized
from unimm.images.measure import psnr
from unimm.images.prepare import prepare
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
from unimm.sample import Codes, Latents, Level

SEED = {"queries": 6, "causal": True, "drop_tail": 0.5, "quantizer": FSQ(levels=(6, 6, 6))}
LAVIT = {"keep": 0.45, "quantizer": VQ(size=64, dim=8)}
MING = {"quantizer": Unquantized(dim=6, noise=0.2), "expander": 2}
KINDS = pytest.mark.parametrize("kind", [SEED, LAVIT, MING], ids=["seed", "lavit", "ming"])


def small(**changes):
    torch.manual_seed(0)
    return build_tokenizer(ViTTokenizer(**{"width": 32, "layers": 1, "decoder_layers": 1, **changes}))


def scenes(count):
    return [s.images[0].content.array for s in pairs(count, 3)]


def trained(steps, **changes):
    tokenizer = small(foreground_weight=4.0, locality=6.0, **changes).train()
    images = to_tensor(scenes(512))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=5e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(steps):
        loss = tokenizer(images[step % 32 * 16 :][:16]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    return tokenizer.eval()


def cut(content, n):
    return Codes((Level(content.levels[0].ids[:n]),))


def psnr_of(images, back):
    return psnr(*(torch.from_numpy(np.stack(some)).float() / 255 for some in (images, back)))


def test_a_causal_query_sees_no_later_one():
    tokenizer, x = small(**SEED), to_tensor(scenes(3))
    before = tokenizer.tokens(x)[0]
    with torch.no_grad():
        tokenizer.queries[3] += 1
    changed = (tokenizer.tokens(x)[0] != before).any(-1)
    assert not changed[:, :3].any() and changed[:, 3:].all()
    free = small(**SEED | {"causal": False})
    before = free.tokens(x)[0]
    with torch.no_grad():
        free.queries[3] += 1
    assert (free.tokens(x)[0] != before).any(-1).all()


def test_every_query_sees_all_patches():
    tokenizer = small(**SEED)
    x = to_tensor(scenes(1)).requires_grad_()
    gradient, = torch.autograd.grad(tokenizer.tokens(x)[0][0, 0].square().sum(), x)
    assert (gradient.abs().amax(1).unfold(1, 8, 8).unfold(2, 8, 8).amax((-1, -2)) > 0).all()


def test_a_prefix_draws_alike_alone_in_a_batch_and_before_any_other_codes():
    tokenizer = small(**SEED).eval()
    whole = to_codes(tokenizer, scenes(2))
    mixed = to_pixels(tokenizer, [cut(whole[0], 2), whole[1], cut(whole[0], 5)])
    assert np.array_equal(mixed[0], to_pixels(tokenizer, [cut(whole[0], 2)])[0])
    ids = torch.from_numpy(whole[0].levels[0].ids.T).long()
    drawn = decode(tokenizer, ids[:, :2])
    assert torch.allclose(drawn, tokenizer.pictures([cut(whole[0], 2)]), atol=1e-6)
    present = torch.tensor([[1.0, 1, 0, 0, 0, 0]])
    same = [tokenizer.features(tokenizer.vectors_of(torch.cat([ids[:, :2], rest], 1)), present)
            for rest in (ids[:, 2:], 5 * torch.ones_like(ids[:, 2:]))]
    assert torch.equal(*same)


def test_a_longer_prefix_draws_a_nearer_picture():
    tokenizer = trained(120, **SEED | {"queries": 4})
    images = scenes(64)
    codes = to_codes(tokenizer, images)
    found = [psnr_of(images, to_pixels(tokenizer, [cut(c, n) for c in codes])) for n in (1, 2, 3, 4)]
    assert found == sorted(found) and found[-1] > found[0] + 0.3


def test_the_count_of_kept_patches_follows_the_objects():
    tokenizer = trained(220, keep=0.5, quantizer=FSQ(levels=(5, 5, 5, 5, 5)))
    evaluated = evaluation_scenes(100, seed=1)
    counts = [len(c.levels[0].ids) for c in to_codes(tokenizer, [draw(s) for s in evaluated])]
    objects = [len(s.things) for s in evaluated]
    assert len(set(counts)) > 2 and np.corrcoef(counts, objects)[0, 1] > 0.6
    assert abs(np.mean(counts) / 16 - 0.5) < 0.15


def test_kept_patches_of_different_counts_draw_in_a_batch_as_one_by_one():
    tokenizer = small(**LAVIT).eval()
    images = scenes(8)
    codes = to_codes(tokenizer, images)
    assert len({len(c.levels[0].ids) for c in codes}) > 1
    assert codes == [to_codes(tokenizer, [image])[0] for image in images]
    assert all((np.diff(c.levels[0].ids[:, 0] % 16) > 0).all() for c in codes)  # raster order
    assert tokenizer.code_vectors()["visual"].shape == (64 * 16, tokenizer.dim)
    alone = torch.cat([tokenizer.pictures([c]) for c in codes])
    assert torch.allclose(tokenizer.pictures(codes), alone, atol=1e-5)
    found = tokenizer(to_tensor(images))
    assert torch.allclose(found.images, alone, atol=1e-5)
    assert all(np.array_equal(ids[ids >= 0], c.levels[0].ids[:, 0]) for ids, c in zip(found.ids.numpy(), codes))


def test_at_least_one_patch_is_kept():
    tokenizer = small(**LAVIT)
    with torch.no_grad():
        tokenizer.selector.bias.copy_(torch.tensor([-50.0, 50.0]))
    assert all(len(c.levels[0].ids) == 1 for c in to_codes(tokenizer, scenes(3)))
    assert (tokenizer.train()(to_tensor(scenes(3))).ids >= 0).sum(1).tolist() == [1, 1, 1]


def test_pixels_and_rate_teach_the_selector_and_dropped_patches_reach_the_kept():
    tokenizer, x = small(**LAVIT).train(), to_tensor(scenes(4))
    for name in ("mse", "rate"):
        tokenizer.zero_grad()
        tokenizer(x).losses[name].backward()
        assert tokenizer.selector.weight.grad.abs().sum() > 0
    x = torch.randn(4, 3, 32, 32)
    z, keep = tokenizer.tokens(x)
    assert z.shape == (4, 16, 8) and 0 < keep.sum() < keep.numel()
    row = int(((keep.sum(1) < 16) & (keep.sum(1) > 1)).nonzero()[0])
    kept, dropped = int(keep[row].argmax()), int(keep[row].argmin())
    seen = []
    tokenizer.merger.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    tokenizer.tokens(x)
    sees = seen[0].isfinite()[row, 0]
    assert sees[kept, dropped] and sees[kept, kept] and sees[kept].sum() == 1 + (keep[row] == 0).sum()


def test_the_rate_loss_is_the_squared_distance_of_the_mean_share():
    found = small(**LAVIT, keep_weight=3.0).eval()(to_tensor(scenes(4)))
    assert found.losses["rate"].item() == pytest.approx(3 * ((found.ids >= 0).float().mean().item() - 0.45) ** 2)


def test_the_expander_reads_no_later_latent():
    tokenizer = small(**MING).eval()
    latents = torch.randn(2, 16, 6)
    whole, later = tokenizer.expand(latents), latents.clone()
    later[:, 9] += 1
    changed = tokenizer.expand(later) != whole
    assert not changed[:, :9].any() and changed[:, 9:].any(-1).all()
    assert torch.allclose(tokenizer.expand(latents[:, :5]), whole[:, :5], atol=1e-5)
    assert whole.shape[-1] == tokenizer.dim and torch.equal(whole, tokenizer.features(latents))
    assert torch.equal(small(quantizer=Unquantized(dim=6)).expand(latents), latents)


def test_latents_have_unit_scale_come_back_as_the_reconstruction_and_are_noisy_in_training_only():
    tokenizer, images = small(**MING), scenes(3)
    latents = to_codes(tokenizer, images)
    assert all(isinstance(one, Latents) and one.array.shape == (16, 6) for one in latents)
    assert np.mean([one.array**2 for one in latents]) == pytest.approx(1, abs=0.01)
    assert tokenizer.books == {} and tokenizer.channels == {"visual": 6}
    quiet = [tokenizer.eval()(to_tensor(images)).images for _ in range(2)]
    noisy = [tokenizer.train()(to_tensor(images)).images for _ in range(2)]
    assert torch.equal(*quiet) and not torch.equal(*noisy)
    assert torch.allclose(tokenizer.pictures(latents), quiet[0], atol=1e-5)


@KINDS
def test_training_and_eval_mode_encode_alike_and_a_saved_tokenizer_comes_back(kind, tmp_path):
    tokenizer, images = small(**kind).train(), scenes(4)
    tokenizer(to_tensor(images))
    codes = to_codes(tokenizer, images)
    assert codes == to_codes(tokenizer.eval(), images)
    save_tokenizer(tokenizer, tmp_path / "it")
    again = load_tokenizer(tmp_path / "it")
    assert fingerprint(again) == fingerprint(tokenizer) and to_codes(again, images) == codes
    assert tokenizer.conditions(codes).shape == (4, 32, 4, 4)
    assert tokenizer.bfloat16().pictures(to_codes(tokenizer, images)).dtype == torch.float32
    assert prepare(tokenizer.config, np.zeros((50, 70, 3), np.uint8)).shape == (32, 32, 3)


@KINDS
def test_every_weight_learns(kind):
    tokenizer = small(**kind).train()
    sum(p.loss for p in [tokenizer(to_tensor(scenes(8)))]).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None] == []


def test_queries_take_several_codes_a_position():
    tokenizer = small(queries=5, quantizer=Residual(of=VQ(size=20, dim=4), depth=3))
    codes = to_codes(tokenizer, scenes(2))
    assert codes[0].levels[0].ids.shape == (5, 3) and tokenizer.books == {"visual": (20, 3)}
    assert to_pixels(tokenizer, codes)[0].shape == (32, 32, 3)


def test_what_cannot_be_drawn_is_refused_in_one_line():
    def refused(kind, content):
        with pytest.raises(TokenizerError) as refusal:
            to_pixels(small(**kind), [content])
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    assert "one of (1 to 6, 1)" in refused(SEED, Codes((Level(np.zeros((7, 1))),)))
    assert "below 216" in refused(SEED, Codes((Level(np.full((6, 1), 216)),)))
    assert "one of (1 to 16, 1)" in refused(LAVIT, Codes((Level(np.zeros((3, 2))),)))
    assert "0 level(s) of nothing" in refused(LAVIT, Latents(np.zeros((3, 8), np.float32)))
    assert "16 latents of 6 channels" in refused(MING, Latents(np.zeros((15, 6), np.float32)))
    assert "latents" in refused(MING, Codes((Level(np.zeros((16, 1))),)))
    assert "latents" in refused(MING, Latents(np.full((16, 6), np.nan, np.float32)))


@pytest.mark.parametrize("wrong", [{"keep": 0.5, "queries": 4}, {"keep": 0.5, "expander": 1},
                                   {"keep": 0.5, "drop_tail": 0.1},
                                   {"keep": 0.5, "quantizer": Unquantized()}, {"causal": True},
                                   {"locality": -1.0}], ids=str)
def test_a_mechanism_that_would_not_work_is_refused(wrong):
    with pytest.raises(ConfigError):
        ViTTokenizer(**wrong)
