"""The quantizers and norms of the published tokenizers against small loops in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from images.published import TINY, decode, encode, photographs, tensor, tiny

from unimm.config.images import Chameleon
from unimm.config.quantizers import IndexBackprop
from unimm.images.quantize import Codebook, IndexBackpropagation, UnitCodebook
from unimm.images.tokenizer import TokenizerError, build_tokenizer, to_codes, to_pixels
from unimm.sample import Codes, Level


def book(kind, size=30, dim=5):
    torch.manual_seed(1)
    made = kind(IndexBackprop(size=size, dim=dim, entropy_weight=0.0))
    torch.nn.init.normal_(made.embedding.weight)
    return made


def chosen(kind, z, table):
    """The code of each vector by the definition, one at a time in float64."""
    z, table = z.double().numpy(), table.detach().double().numpy()
    found = []
    for v in z:
        if kind is UnitCodebook:
            cosine = [v @ e / np.linalg.norm(v) / np.linalg.norm(e) for e in table]
            found.append(int(np.argmax(cosine)))
        elif kind is IndexBackpropagation:
            found.append(int(np.argmax([v @ e for e in table])))
        else:
            found.append(int(np.argmin([((v - e) ** 2).sum() for e in table])))
    return found


@pytest.mark.parametrize("kind", [Codebook, UnitCodebook, IndexBackpropagation])
def test_codes_are_those_of_the_definition(kind, monkeypatch):
    made = book(kind).eval()
    z = 2 * torch.randn(2, 5, 7, 6)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 5)
    want = chosen(kind, rows, made.embedding.weight)
    assert made.ids_of(z).flatten().tolist() == want
    assert len(set(want)) > 10
    monkeypatch.setattr("unimm.images.quantize.DISTANCES", 100)  # a few rows at a time
    assert made.ids_of(z).flatten().tolist() == want
    found = made(z)
    assert torch.equal(found.vectors, made.codes_to_vectors(found.ids).view(2, 7, 6, 5).permute(0, 3, 1, 2))


def test_the_three_rules_differ():
    """Each would pass another's test with the wrong rule where all codes have one length; these have not."""
    z = torch.randn(1, 5, 20, 20)
    found = [book(kind).eval().ids_of(z) for kind in (Codebook, UnitCodebook, IndexBackpropagation)]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_index_backpropagation_has_the_gradient_of_its_paper():
    """The choice as a one-hot row, its gradient that of the softmax: written as matrices in float64."""
    made = book(IndexBackpropagation, size=6, dim=3).train()
    z = torch.randn(2, 3, 2, 2, requires_grad=True)
    weight = torch.randn(8, 3)
    found = made(z)
    rows = found.vectors.permute(0, 2, 3, 1).reshape(-1, 3)
    ((rows * weight).sum() + found.loss).backward()

    x = z.detach().double().requires_grad_()
    table = made.embedding.weight.detach().double().requires_grad_()
    flat = x.permute(0, 2, 3, 1).reshape(-1, 3)
    logits = flat @ table.T
    soft, hard = logits.softmax(1), F.one_hot(logits.argmax(1), 6).double()
    z_q, z_hard = (hard - soft.detach() + soft) @ table, hard @ table
    loss = ((z_q - flat) ** 2).mean() + ((z_hard.detach() - flat) ** 2).mean()
    loss = loss + 0.25 * ((z_hard - flat.detach()) ** 2).mean()
    ((z_q * weight).sum() + loss).backward()
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(z.grad.double(), x.grad, atol=1e-4)
    assert torch.allclose(made.embedding.weight.grad.double(), table.grad, atol=1e-4)
    assert (made.embedding.weight.grad.abs().sum(1) > 0).all()  # every code learns, chosen or not


def test_a_codebook_learns_from_its_own_loss_alone():
    made = book(Codebook).train()
    z = torch.randn(2, 5, 3, 3, requires_grad=True)
    found = made(z)
    found.vectors.sum().backward(retain_graph=True)
    assert made.embedding.weight.grad is None and torch.equal(z.grad, torch.ones_like(z))
    found.loss.backward()
    used = torch.zeros(30, dtype=torch.bool)
    used[found.ids.flatten()] = True
    assert torch.equal(made.embedding.weight.grad.abs().sum(1) > 0, used)


def test_the_spatial_norm_is_that_of_enlarged_codes():
    """MoVQ's own order: enlarge the codes' vectors, then convolve them at every pixel."""
    torch.manual_seed(0)
    layer = build_tokenizer(TINY["movq"]).decoder.conv_norm_out
    x, codes = torch.randn(2, 32, 6, 9), torch.randn(2, 4, 2, 3)
    got = layer(x, codes)
    groups = x.double().view(2, 32, -1)
    flat = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
    big = codes.double().repeat_interleave(3, 2).repeat_interleave(3, 3)
    scale, shift = (torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0].double(), big)
                    + conv.bias.double()[:, None, None] for conv in (layer.conv_y, layer.conv_b))
    assert torch.allclose(got.double(), flat.view_as(x) * scale + shift, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_each_kind_codes_and_draws_grids_of_several_shapes(kind):
    tokenizer = tiny(kind)
    assert tokenizer.code_vectors()["visual"].shape == (tokenizer.quantizer.size, tokenizer.dim)
    pictures = [photographs()[0][:h, :w] for h, w in ((64, 64), (32, 80), (64, 64))]
    codes = to_codes(tokenizer, pictures)
    assert [c.levels[0].grid for c in codes] == [(8, 8), (4, 10), (8, 8)]
    drawn = to_pixels(tokenizer, codes)
    assert [d.shape for d in drawn] == [p.shape for p in pictures]
    found = tokenizer(tensor(pictures[1]))
    assert torch.equal(found.ids, encode(tokenizer, tensor(pictures[1])))
    assert torch.allclose(found.images, decode(tokenizer, found.ids, (4, 10)), atol=1e-4)
    assert torch.equal(encode(tokenizer.train(), tensor(pictures[1])), found.ids)
    line = Codes((Level(codes[0].levels[0].ids),))  # codes without a grid are on the configuration's own
    assert np.array_equal(to_pixels(tokenizer, [line])[0], to_pixels(tokenizer, codes[:1])[0])


@pytest.mark.parametrize("kind", sorted(TINY))
def test_sizes_and_codes_that_do_not_fit_are_refused(kind):
    tokenizer = tiny(kind)
    with pytest.raises(TokenizerError, match="image 0 is uint8 .60, 64, 3.*both sides multiples of 8"):
        to_codes(tokenizer, [np.zeros((60, 64, 3), np.uint8)])
    with pytest.raises(TokenizerError, match="multiples of 8"):
        encode(tokenizer, torch.zeros(1, 3, 64, 4))
    with pytest.raises(TokenizerError, match="below 96"):
        to_pixels(tokenizer, [Codes.of_grid(np.full((2, 2), 96))])


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_loss_reaches_every_weight_that_is_trained(kind):
    tokenizer = tiny(kind).train()
    tokenizer(tensor(photographs()[0][:32, :32])).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tokenizer.parameters())


def test_without_a_decoder_it_says_that_it_cannot_draw():
    tokenizer = build_tokenizer(Chameleon(**{**vars(TINY["chameleon"]), "decoder": False}))
    codes = to_codes(tokenizer, [np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(TokenizerError, match="without a decoder"):
        to_pixels(tokenizer, codes)


def test_emu3_keeps_the_averages_it_came_with():
    tokenizer = tiny("emu3").train()
    before = {name: t.clone() for name, t in tokenizer.named_buffers()}
    tokenizer(tensor(photographs()[0][:32, :32]))
    assert before and all(torch.equal(before[name], t) for name, t in tokenizer.named_buffers())
