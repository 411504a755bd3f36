"""The image tokenizer: shapes, locality, learning, fingerprint, folder."""

import json

import numpy as np
import pytest
import torch
from images.published import decode, encode

from unimm.config.images import ConvTokenizer
from unimm.config.quantizers import FSQ, LFQ, VQ, IndexBackprop, Product, Residual, Unquantized
from unimm.errors import UserError
from unimm.images.measure import measure
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
from unimm.sample import Codes, Latents
from unimm.weights import StoredError

SMALL = ConvTokenizer(image=16, downsample=4, width=16)


def small(**changes):
    torch.manual_seed(0)
    return build_tokenizer(ConvTokenizer(**{"image": 16, "downsample": 4, "width": 16, **changes}))


def squares(count, seed=0, side=16):
    """Coloured squares on black."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, side, side, 3), np.uint8)
    for image in images:
        y, x = rng.integers(0, side - 6, 2)
        image[y : y + 6, x : x + 6] = rng.integers(0, 2, 3) * 255
    return list(images)


SINGLE = [FSQ(levels=(4, 4)), VQ(size=20, dim=4), LFQ(bits=4), IndexBackprop(size=20, dim=4)]
SEVERAL = [Residual(of=VQ(size=20, dim=4), depth=3), Product(of=VQ(size=20, dim=4))]


@pytest.mark.parametrize("quantizer", SINGLE, ids=lambda q: q.kind)
def test_codes_to_pixels_to_codes_keep_their_shapes(quantizer):
    tokenizer = small(quantizer=quantizer)
    images = squares(3)
    codes = to_codes(tokenizer, images)
    assert [c.levels[0].grid for c in codes] == [(4, 4)] * 3
    again = to_pixels(tokenizer, codes)
    assert all(i.dtype == np.uint8 and i.shape == (16, 16, 3) for i in again)
    assert len(to_codes(tokenizer, again)) == 3
    assert to_codes(tokenizer, []) == [] and to_pixels(tokenizer, []) == []
    assert tokenizer.code_vectors()["visual"].shape == (tokenizer.quantizer.size, tokenizer.dim)


@pytest.mark.parametrize("quantizer", SEVERAL, ids=lambda q: q.kind)
def test_several_codes_a_position_go_the_same_way(quantizer):
    tokenizer = small(quantizer=quantizer)
    codes = to_codes(tokenizer, squares(3))
    depth = tokenizer.quantizer.depth
    assert [c.levels[0].ids.shape for c in codes] == [(16, depth)] * 3
    assert tokenizer.books == {"visual": (20, depth)} and tokenizer.channels == {}
    drawn = decode(tokenizer, encode(tokenizer, to_tensor(squares(3))))
    assert torch.equal(tokenizer.pictures(codes), drawn)
    with pytest.raises(TokenizerError, match=rf"1 level.s. of \(16, 1\), 0 to 0.*one of \(16, {depth}\) below 20"):
        to_pixels(tokenizer, [Codes.of_grid(np.zeros((4, 4), int))])


def test_without_a_quantizer_there_are_latents(tmp_path):
    tokenizer = small(quantizer=Unquantized(dim=5)).train()
    found = to_codes(tokenizer, squares(3))
    assert all(isinstance(c, Latents) and c.array.shape == (16, 5) and c.grid == (4, 4) for c in found)
    assert tokenizer.books == {} and tokenizer.channels == {"visual": 5}
    assert found == to_codes(tokenizer, squares(3)), "noise is for training's forward alone"
    again = tokenizer.eval()(to_tensor(squares(3)))
    assert torch.allclose(again.images, tokenizer.pictures(found), atol=1e-5) and again.ids is None
    values = measure(tokenizer, squares(3)).values
    assert "psnr" in values and "codes_used" not in values
    for wrong in (Codes.of_grid(np.zeros((4, 4), int)), Latents(np.zeros((16, 4), np.float32))):
        with pytest.raises(TokenizerError, match="latents.*has 16 latents of 5 channels"):
            to_pixels(tokenizer, [wrong])
    with pytest.raises(TokenizerError, match="nothing; this image tokenizer has one of"):
        to_pixels(small(), found)


def test_a_tokenizer_of_any_size_takes_and_gives_every_multiple_of_its_patch():
    tokenizer = small(quantizer=FSQ(levels=(4, 4)), any_size=True)
    wide = [np.random.default_rng(0).integers(0, 256, (8, 20, 3), dtype=np.uint8)]
    codes = to_codes(tokenizer, [*wide, *squares(1)])
    assert [c.levels[0].grid for c in codes] == [(2, 5), (4, 4)]
    assert [i.shape for i in to_pixels(tokenizer, codes)] == [(8, 20, 3), (16, 16, 3)]
    with pytest.raises(TokenizerError, match="multiples of 4"):
        to_codes(tokenizer, [wide[0][:6]])


@pytest.mark.parametrize("quantizer", SINGLE + SEVERAL, ids=lambda q: q.kind)
def test_the_reconstruction_is_what_its_ids_decode_to(quantizer):
    tokenizer = small(quantizer=quantizer).eval()
    found = tokenizer(to_tensor(squares(3)))
    assert torch.equal(found.ids, encode(tokenizer, to_tensor(squares(3))))
    assert torch.allclose(found.images, decode(tokenizer, found.ids), atol=1e-6)


@pytest.mark.parametrize("kernel, local", [(1, True), (3, False)])
def test_only_a_kernel_of_one_keeps_a_code_to_its_own_patch(kernel, local):
    tokenizer = small(encoder_kernel=kernel, blocks=2)
    for p in tokenizer.encoder.parameters():  # blocks start as the identity
        torch.nn.init.normal_(p, std=0.3)
    a = to_tensor([np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)])
    b = a.clone()
    b[:, :, 4:8, 8:12] = -b[:, :, 4:8, 8:12]
    changed = (tokenizer.encoder(a) != tokenizer.encoder(b)).any(1)[0]
    assert changed[1, 2]
    assert (changed.sum() == 1) == local


def test_training_lowers_the_loss():
    tokenizer = small(foreground_weight=4.0)
    images = to_tensor(squares(64))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        found = tokenizer(images[step % 2 * 32 :][:32])
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        losses.append(found.loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert all(p.grad is not None for p in tokenizer.parameters())


def test_losses_equal_a_float64_loop():
    tokenizer = small(foreground_weight=3.0, l1=0.7)
    images = [np.full((16, 16, 3), background, np.uint8) for background in (0, 40)]
    for i, image in enumerate(images):
        image[i : i + 6, 0:6] = (255, 0, 40)  # at the border and, first, over the corner
    x = to_tensor(images)
    found = tokenizer(x)
    squared = absolute = 0.0
    total = 2 * 3 * (256 + 2 * 36)
    for image, want, got in zip(images, x.double().numpy(), found.images.detach().double().numpy()):
        for y in range(16):
            for c in range(16):
                weight = 1.0 if (image[y, c] == image[15, 15]).all() else 3.0
                squared += weight * ((got[:, y, c] - want[:, y, c]) ** 2).sum() / total
                absolute += weight * abs(got[:, y, c] - want[:, y, c]).sum() / total
    assert found.losses["mse"].item() == pytest.approx(squared, rel=1e-5)
    assert found.losses["l1"].item() == pytest.approx(0.7 * absolute, rel=1e-5)
    assert found.loss.item() == pytest.approx(sum(v.item() for v in found.losses.values()))


def test_the_loss_of_a_batch_is_the_mean_of_its_halves():
    """Otherwise two ranks would not give the gradient of one process."""
    tokenizer = small(foreground_weight=4.0)
    images = squares(4)
    images[0][:] = 0
    whole, a, b = (tokenizer(to_tensor(some)).loss for some in (images, images[:2], images[2:]))
    assert whole.item() == pytest.approx((a + b).item() / 2, rel=1e-5)


def test_images_and_codes_of_another_size_are_refused():
    tokenizer = small(quantizer=FSQ(levels=(4, 4)))
    with pytest.raises(TokenizerError, match=r"image 1 is uint8 \(8, 16, 3\).*crop and resize"):
        to_codes(tokenizer, [squares(1)[0], squares(1)[0][:8]])
    with pytest.raises(TokenizerError, match="crop and resize"):
        encode(tokenizer, torch.zeros(1, 3, 16, 20))
    with pytest.raises(TokenizerError, match="below 16"):
        to_pixels(tokenizer, [Codes.of_grid(np.full((4, 4), 16))])
    with pytest.raises(TokenizerError, match=r"one of \(16, 1\)"):
        to_pixels(tokenizer, [Codes.of_grid(np.zeros((2, 4), int))])
    assert issubclass(TokenizerError, UserError)


def test_the_fingerprint_changes_with_one_bit_of_one_weight():
    tokenizer = small()
    before = fingerprint(tokenizer)
    assert before == fingerprint(small())
    weight = tokenizer.decoder[0].bias.data
    weight.view(torch.int32)[0] ^= 1
    assert fingerprint(tokenizer) != before
    weight.view(torch.int32)[0] ^= 1
    assert fingerprint(tokenizer) == before != fingerprint(small(l1=0.25))


@pytest.mark.parametrize("config", [SMALL, ConvTokenizer(image=16, downsample=4, width=16, foreground_weight=4),
                                    ConvTokenizer(image=16, downsample=4, width=16, quantizer=VQ(size=9))], ids=str)
def test_a_saved_tokenizer_comes_back_the_same(config, tmp_path):
    tokenizer = build_tokenizer(config)
    tokenizer.train()(to_tensor(squares(2)))
    save_tokenizer(build_tokenizer(SMALL), tmp_path / "it")
    save_tokenizer(tokenizer, tmp_path / "it")
    again = load_tokenizer(tmp_path / "it")
    assert again.config == config and not again.training
    assert fingerprint(again) == fingerprint(tokenizer)
    assert to_codes(again, squares(3)) == to_codes(tokenizer, squares(3))
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


def damaged(tmp_path, name, change):
    folder = tmp_path / "it"
    save_tokenizer(small(), folder)
    change(folder / name)
    with pytest.raises((TokenizerError, StoredError)) as refusal:
        load_tokenizer(folder)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)
    return str(refusal.value)


def test_a_truncated_weights_file_is_refused_in_one_line(tmp_path):
    assert "damaged" in damaged(tmp_path, "model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-100]))


def test_a_flipped_bit_is_refused(tmp_path):
    def flip(path):
        data = bytearray(path.read_bytes())
        data[-10] ^= 1
        path.write_bytes(data)

    assert "fingerprint" in damaged(tmp_path, "model.safetensors", flip)


def test_missing_files_and_a_wrong_config_are_refused(tmp_path):
    def wider(path):
        about = json.loads(path.read_text())
        about["config"]["width"] = 32
        path.write_text(json.dumps(about))

    def unknown(path):
        path.write_text(path.read_text().replace('"width"', '"wdith"'))

    assert "it has no model.safetensors" in damaged(tmp_path, "model.safetensors", lambda p: p.unlink())
    assert "it has no config.json" in damaged(tmp_path, "config.json", lambda p: p.unlink())
    assert "does not describe" in damaged(tmp_path, "config.json", lambda p: p.write_text("{"))
    assert "wdith" in damaged(tmp_path, "config.json", unknown)
    assert "differs" in damaged(tmp_path, "config.json", wider)
