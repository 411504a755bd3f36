"""The quantizers' contract, their agreement with vector-quantize-pytorch, and codebooks that stay alive and equal."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unimm.config.quantizers import FSQ, LFQ, VQ, IndexBackprop, Product, Residual, Unquantized
from unimm.images.quantize import build_quantizer

SINGLE = [FSQ(levels=(8, 5, 2)), VQ(size=32, dim=6), LFQ(bits=5), LFQ(bits=11, spherical=True)]
SEVERAL = [Residual(of=VQ(size=16, dim=6), depth=3), Product(of=VQ(size=16, dim=3), parts=2, disentangle=0.5)]
KINDS = [*SINGLE, IndexBackprop(size=32, dim=6), *SEVERAL]


def maps(quantizer, seed=0, b=4, h=3, w=5):
    return torch.randn(b, quantizer.dim, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_quantized_vectors_are_those_of_their_ids_bit_for_bit(kind):
    quantizer = build_quantizer(kind)
    z = maps(quantizer)
    quantizer.train()(z)
    quantizer.eval()
    vectors, ids, loss = quantizer(z)
    depth = () if quantizer.depth == 1 else (quantizer.depth,)
    assert ids.dtype == torch.int64 and ids.shape == (4, 15, *depth) and loss == 0
    assert torch.equal(vectors.flatten(2).transpose(1, 2), quantizer.codes_to_vectors(ids))
    assert torch.equal(ids, quantizer.ids_of(z))


@pytest.mark.parametrize("kind", [SINGLE[0], SINGLE[2], SINGLE[3]], ids=str)
def test_training_sees_the_same_vectors_as_decoding(kind):
    quantizer = build_quantizer(kind).train()
    vectors, ids, _ = quantizer(1e9 * maps(quantizer))  # so large that z + (vectors - z) would lose the vectors
    assert torch.equal(vectors.flatten(2).transpose(1, 2), quantizer.codes_to_vectors(ids))


@pytest.mark.parametrize("kind", SINGLE, ids=str)
def test_every_code_is_the_id_of_its_own_vector(kind):
    quantizer = build_quantizer(kind)
    ids = torch.arange(quantizer.size)[None]
    vectors = quantizer.codes_to_vectors(ids)
    z = vectors.clamp(-1 + 1e-6, 1 - 1e-6).atanh() if kind.kind == "fsq" else vectors  # before the tanh
    assert torch.equal(quantizer.ids_of(z.transpose(1, 2)[..., None]), ids)
    assert len(vectors[0].unique(dim=0)) == quantizer.size


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradient_goes_straight_through(kind):
    quantizer = build_quantizer(kind).eval()
    z = maps(quantizer).requires_grad_()
    weight = torch.randn(z.shape)
    (quantizer(z).vectors * weight).sum().backward()
    want = torch.autograd.grad((quantizer.settled(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * weight).sum(), z)[0]
    assert torch.allclose(z.grad, want, atol=1e-6) and z.grad.abs().min() > 0
    if kind.kind in ("vq", "residual", "product", "index_backprop"):
        assert torch.allclose(z.grad, weight)


def test_fsq_agrees_with_the_reference():
    from vector_quantize_pytorch import FSQ as Reference

    ours, theirs = build_quantizer(FSQ(levels=(8, 5, 2))), Reference([8, 5, 2], preserve_symmetry=True)
    z = 2 * maps(ours, b=50)
    vectors, ids = theirs(z)
    found = ours(z)
    assert torch.equal(found.ids, ids.flatten(1).long())
    assert torch.allclose(found.vectors, vectors, atol=1e-6)


@pytest.mark.parametrize("spherical", [False, True])
def test_lfq_agrees_with_the_reference_in_codes_and_entropies(spherical):
    from vector_quantize_pytorch import LFQ as Reference

    ours = build_quantizer(LFQ(bits=6, entropy_weight=0.3, spherical=spherical)).train()
    theirs = Reference(dim=6, codebook_size=64, entropy_loss_weight=0.3, commitment_loss_weight=0.25,
                       spherical=spherical).train()
    z = 0.5 * maps(ours)
    # Their distance is -2 z . code times the inverse temperature; ours -4 z / scale a bit.
    vectors, ids, loss = theirs(z, inv_temperature=6.0 if spherical else 1.0)
    found = ours(z)
    assert torch.equal(found.ids, ids.flatten(1).long())
    assert torch.allclose(found.vectors, vectors, atol=1e-6)
    assert torch.allclose(found.loss, loss, atol=1e-3)


def test_vq_agrees_with_the_reference_while_training():
    from vector_quantize_pytorch import VectorQuantize

    ours = build_quantizer(VQ(size=16, dim=6, decay=0.9, dead_below=0)).train()
    theirs = VectorQuantize(dim=6, codebook_size=16, decay=0.9, threshold_ema_dead_code=0, commitment_weight=0.25,
                            rotation_trick=False, accept_image_fmap=True, eps=1e-12).train()
    book = theirs._codebook
    ours.codebook.copy_(book.embed[0])
    ours.sums.copy_(book.embed_avg[0])
    ours.counts.copy_(book.cluster_size[0])
    ours.started.fill_(True)
    for step in range(5):
        z = maps(ours, seed=step, b=20)
        found, (_, ids, loss) = ours(z), theirs(z)
        assert torch.equal(found.ids, ids.flatten(1))
        assert torch.allclose(found.loss, loss.squeeze(), atol=1e-6)
        assert torch.allclose(ours.codebook, book.embed[0], atol=1e-5)


def test_dead_codes_revive():
    quantizer = build_quantizer(VQ(size=32, dim=2, decay=0.9, dead_below=0.1)).train()
    quantizer.started.fill_(True)
    quantizer.codebook.fill_(1e6)  # one code wins every vector, the others are dead
    quantizer.codebook[0] = 0
    z = maps(quantizer, b=16, h=8, w=8)
    assert len(quantizer.ids_of(z).unique()) == 1
    for step in range(60):
        quantizer(maps(quantizer, seed=step, b=16, h=8, w=8))
    assert len(quantizer.ids_of(z).unique()) == 32


def test_dead_codes_stay_dead_without_resets():
    quantizer = build_quantizer(VQ(size=32, dim=2, decay=0.9, dead_below=0)).train()
    quantizer.started.fill_(True)
    quantizer.codebook.fill_(1e6)
    quantizer.codebook[0] = 0
    for step in range(20):
        quantizer(maps(quantizer, seed=step))
    assert len(quantizer.ids_of(maps(quantizer)).unique()) == 1


def test_a_rare_vector_gets_its_own_code_though_background_fills_the_batch():
    quantizer = build_quantizer(VQ(size=4, dim=2, decay=0.9, dead_below=0.5)).train()
    z = torch.zeros(8, 2, 16, 16)
    z[:, :, 0, 0], z[:, :, 0, 1] = 5.0, -5.0
    torch.manual_seed(0)
    for _ in range(60):
        quantizer(z)
    assert torch.allclose(quantizer.eval()(z).vectors, z, atol=1e-2)


def test_only_training_moves_the_codebook():
    quantizer = build_quantizer(VQ(size=8, dim=2)).train()
    quantizer(maps(quantizer))
    before = quantizer.codebook.clone()
    quantizer.ids_of(maps(quantizer, seed=1))
    quantizer.eval()(maps(quantizer, seed=2))
    assert torch.equal(quantizer.codebook, before)


def test_vq_averages_stay_float32_when_the_model_is_cast():
    quantizer = build_quantizer(VQ(size=8, dim=2)).bfloat16()
    assert quantizer.codebook.dtype == quantizer.counts.dtype == quantizer.sums.dtype == torch.float32
    vectors = quantizer.train()(maps(quantizer).bfloat16()).vectors
    assert vectors.dtype == torch.bfloat16


def test_autocast_does_not_change_the_codes():
    for kind in KINDS:
        quantizer = build_quantizer(kind).eval()
        z = maps(quantizer, b=64)
        with torch.autocast("cpu", torch.bfloat16):
            inside = quantizer.ids_of(z)
        assert torch.equal(inside, quantizer.ids_of(z))


def test_entropies_of_lookup_free_codes_equal_a_sum_over_all_codes():
    quantizer = build_quantizer(LFQ(bits=4, entropy_weight=1.0)).train()
    z = maps(quantizer).double()
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    codes = quantizer.codes_to_vectors(torch.arange(16)).double()
    p = (2 * rows @ codes.T).softmax(1)
    each = -(p * p.log()).sum(1).mean()
    together = -(p.mean(0) * p.mean(0).log()).sum()
    commitment = (rows - rows.sign()).square().mean()
    assert math.isclose(quantizer(z).loss.item(), (each - together + 0.25 * commitment).item(), rel_tol=1e-5)


def test_residual_codes_agree_with_the_reference():
    from vector_quantize_pytorch import ResidualVQ

    ours = build_quantizer(Residual(of=VQ(size=16, dim=6), depth=3)).eval()
    theirs = ResidualVQ(dim=6, num_quantizers=3, codebook_size=16, shared_codebook=True).eval()
    theirs.layers[0]._codebook.embed[0].copy_(ours.of.codebook)
    z = maps(ours, b=20)
    vectors, ids, _ = theirs(z.flatten(2).transpose(1, 2))
    found = ours(z)
    assert torch.equal(found.ids, ids) and len(ids.unique()) == 16
    assert torch.allclose(found.vectors.flatten(2).transpose(1, 2), vectors, atol=1e-6)


def test_residual_loss_and_averages_are_those_of_a_loop_over_depths():
    quantizer = build_quantizer(Residual(of=VQ(size=8, dim=3, decay=0.9, dead_below=0), depth=3)).train()
    quantizer.of.started.fill_(True)
    table, z = quantizer.of.codebook.double().clone(), maps(quantizer)
    left, loss = z.permute(0, 2, 3, 1).reshape(-1, 3).double(), 0.0
    counts, sums = torch.zeros(8).double(), torch.zeros(8, 3).double()
    for _ in range(3):
        ids = torch.cdist(left, table).argmin(1)
        loss += 0.25 * (left - table[ids]).square().mean().item() / 3
        for i, row in zip(ids, left):
            counts[i] += 0.1
            sums[i] += 0.1 * row
        left = left - table[ids]
    assert quantizer(z).loss.item() == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(quantizer.of.counts.double(), counts) and torch.allclose(quantizer.of.sums.double(), sums)


def test_each_further_depth_leaves_less_over():
    quantizer = build_quantizer(Residual(of=VQ(size=32, dim=4, decay=0.9), depth=3)).train()
    for step in range(40):
        quantizer(maps(quantizer, seed=step, b=16))
    quantizer.eval()
    z = maps(quantizer, seed=99, b=32)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    each = quantizer.of.codes_to_vectors(quantizer._ids(rows)).cumsum(1)
    left = [(rows - each[:, n]).square().mean() for n in range(3)]
    assert left[0] > 1.3 * left[1] > 1.3 * left[2]


def test_parts_of_a_product_are_quantizers_of_their_own_share():
    quantizer = build_quantizer(Product(of=VQ(size=16, dim=3, dead_below=0), parts=2)).train()
    alone = [build_quantizer(VQ(size=16, dim=3, dead_below=0)).train() for _ in range(2)]
    for part, own in zip(quantizer.parts, alone):
        part.started.fill_(True)
        own.load_state_dict(part.state_dict())
    z = maps(quantizer)
    found, parts = quantizer(z), [own(share) for own, share in zip(alone, z.chunk(2, dim=1))]
    assert torch.equal(found.ids, torch.stack([part.ids for part in parts], -1))
    assert torch.equal(found.vectors, torch.cat([part.vectors for part in parts], 1))
    assert found.loss.item() == pytest.approx(sum(part.loss for part in parts).item() / 2)
    assert all(torch.equal(part.codebook, own.codebook) for part, own in zip(quantizer.parts, alone))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_disentangling_lowers_the_cosine_between_parts(weight):
    torch.manual_seed(0)
    quantizer = build_quantizer(Product(of=VQ(size=32, dim=4, decay=0.8, commitment=0), parts=2, disentangle=weight))
    z = maps(quantizer, b=8)
    z[:, 4:] = z[:, :4] + 0.1 * z[:, 4:]  # both parts say the same
    z.requires_grad_()
    optimizer = torch.optim.SGD([z], lr=60.0)

    def alike():
        a, b = quantizer.eval()(z).vectors.chunk(2, dim=1)
        return torch.cosine_similarity(a, b, dim=1).square().mean().item()

    quantizer.train()(z)
    before = alike()
    for _ in range(60):
        optimizer.zero_grad()
        quantizer.train()(z).loss.backward()
        optimizer.step()
    assert before > 0.6 and (alike() < 0.3 if weight else alike() > 0.6)


def test_a_gradient_reaches_every_code_where_the_choice_has_one():
    quantizer = build_quantizer(IndexBackprop(size=64, dim=4, entropy_weight=0)).train()
    found = quantizer(maps(quantizer, b=1))
    assert len(found.ids.unique()) < 16
    (found.vectors * torch.randn(found.vectors.shape)).sum().backward()
    assert (quantizer.embedding.weight.grad.abs().sum(1) > 0).all()


def test_the_entropy_of_index_backpropagation_is_that_of_its_softmax():
    quantizer = build_quantizer(IndexBackprop(size=7, dim=4, commitment=0.5, entropy_weight=0.3)).train()
    torch.nn.init.normal_(quantizer.embedding.weight)
    z = maps(quantizer)
    rows, table = z.permute(0, 2, 3, 1).reshape(-1, 4).double(), quantizer.embedding.weight.double()
    p = (rows @ table.T).softmax(1)
    squared = (table[(rows @ table.T).argmax(1)] - rows).square().mean()
    entropies = -(p * p.log()).sum(1).mean() + (p.mean(0) * p.mean(0).log()).sum()
    assert quantizer(z).loss.item() == pytest.approx((2.5 * squared + 0.3 * entropies).item(), rel=1e-5)


def test_latents_have_one_length_and_noise_in_training_alone():
    quantizer = build_quantizer(Unquantized(dim=6, noise=0.1))
    z = maps(quantizer, b=100).requires_grad_()
    found, plain = quantizer.train()(z), quantizer.eval()(z)
    assert found.ids is None and quantizer.depth == 0
    assert torch.allclose(plain.vectors.square().mean(1), torch.ones(100, 3, 5), atol=1e-4)
    assert (found.vectors - plain.vectors).std().item() == pytest.approx(0.1, rel=0.05)
    found.vectors.square().sum().backward()
    assert z.grad.abs().min() > 0


RANK = """
import os, sys, torch, torch.distributed as dist
from unimm.config.quantizers import VQ, Product, Residual
from unimm.images.quantize import build_quantizer
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(7)
of = VQ(size=12, dim=3, decay=0.9, dead_below=1.0)
quantizer = torch.nn.ModuleList(map(build_quantizer, (of, Residual(of=of, depth=2), Product(of=of)))).train()
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(100 + rank)
for step in range(6):
    for each in quantizer:
        each(torch.randn(2 + rank, each.dim, 2, 2))
torch.save(quantizer.state_dict(), f"{folder}/rank{rank}.pt")
dist.barrier()
os._exit(0)
"""


def test_two_ranks_with_unequal_batches_keep_one_codebook(tmp_path):
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(r), str(tmp_path)], env=env) for r in range(2)]
    assert [r.wait(60) for r in ranks] == [0, 0]
    a, b = (torch.load(tmp_path / f"rank{r}.pt") for r in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    # 4 vectors a position of 2 + 3 images: both ranks' vectors are counted
    assert a["0.started"] and a["0.counts"].sum() > 12
