import copy

import pytest
import torch
from torch import nn

from unimm.config.stages import AdamW, Muon
from unimm.train.optimizer import block_matrices, build_optimizer, orthogonalise


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 6)
        self.layers = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 10), "c": nn.Linear(10, 6)})
                                     for _ in range(2)])
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 7)


def with_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def newton_schulz(matrix):
    """The published iteration in float64, with no transposition and no batching."""
    x = matrix.double()
    x = x / x.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    return x


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_batched_newton_schulz_equals_the_plain_iteration_on_each_matrix(shape):
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = orthogonalise(stack, dtype=torch.float64)
    for matrix, ours in zip(stack, got, strict=True):
        assert torch.allclose(ours, newton_schulz(matrix), atol=1e-12)


def test_muon_s_steps_equal_a_float64_reference_with_nesterov_momentum():
    net = Net()
    optimizer = build_optimizer(net, Muon(lr=0.1, momentum=0.9, weight_decay=0.01))
    names = {name: p for name, p in net.named_parameters() if p in block_matrices(net)}
    want = {name: p.detach().double() for name, p in names.items()}
    start = dict(want)
    momenta = {name: 0.0 for name in names}
    for step in range(3):
        with_gradients(net, step)
        for name, p in names.items():
            g = p.grad.double()
            momenta[name] = 0.9 * momenta[name] + 0.1 * g
            update = newton_schulz(0.1 * g + 0.9 * momenta[name]) * max(1, p.size(0) / p.size(1)) ** 0.5
            want[name] = want[name] * (1 - 0.1 * 0.01) - 0.1 * update
        optimizer.step()
    assert len(names) == 6
    for name, p in names.items():
        # The iteration runs in bfloat16, which has 8 bits: each update is good to about 1 %.
        assert (p.detach() - want[name]).norm() < 0.04 * (start[name] - want[name]).norm(), name


def test_muon_orthogonalises_every_shape():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(net, Muon(lr=1.0))
    with_gradients(net, 0)
    optimizer.step()
    for name, p in net.named_parameters():
        if p in block_matrices(net):
            singular = torch.linalg.svdvals((before[name] - p.detach()) / max(1, p.size(0) / p.size(1)) ** 0.5)
            assert 0.5 < singular.min() and singular.max() < 1.3, name


def test_everything_that_is_no_block_matrix_moves_as_torch_s_adamw_moves_it():
    net, reference = Net(), Net()
    optimizer = build_optimizer(net, Muon(adamw_lr=0.01, betas=(0.8, 0.9), weight_decay=0.1))
    vectors = [p for p in reference.parameters() if p.ndim < 2]
    tables = [reference.embed.weight, reference.head.weight]
    adamw = torch.optim.AdamW([{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                              lr=0.01, betas=(0.8, 0.9))
    for step in range(3):
        with_gradients(net, step)
        with_gradients(reference, step)
        optimizer.step()
        adamw.step()
    matrices = block_matrices(net)
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        if ours not in matrices:
            assert torch.allclose(ours, theirs, atol=1e-7)
    assert matrices == {layer[key].weight for layer in net.layers for key in "abc"}


@pytest.mark.parametrize("config", [AdamW(weight_decay=0.1), Muon(weight_decay=0.1)])
def test_every_trained_parameter_is_in_one_group_and_frozen_ones_in_none(config):
    net = Net()
    net.embed.weight.requires_grad = False
    net.layers[0]["a"].weight.requires_grad = False
    held = [p for group in build_optimizer(net, config).param_groups for p in group["params"]]
    want = {p for p in net.parameters() if p.requires_grad}
    assert len(held) == len(want) and set(held) == want


def test_a_saved_optimizer_continues_as_the_original():
    nets = [Net(), Net()]
    first, second = (build_optimizer(net, Muon()) for net in nets)
    with_gradients(nets[0], 0)
    first.step()
    nets[1].load_state_dict(nets[0].state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # as from a file: nothing shared
    for net, optimizer in zip(nets, (first, second), strict=True):
        with_gradients(net, 1)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
