"""What the loss holds, storage by storage, against what a plan says it holds."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from unimm.model.cross_entropy import weighted_loss
from unimm.plan.memory import Head

IDS, TOKENS = 3000, 512


class Held(TorchDispatchMode):
    """The most bytes that storages made inside `with` took at one time."""

    def __init__(self, before: list[torch.Tensor]):
        super().__init__()
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.before | self.live.keys():
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata)
        self.most = max(self.most, sum(self.live.values()))
        return made


@pytest.mark.parametrize("width, chunk", [(16, 64), (16, 256), (256, 64)])
@pytest.mark.parametrize("half, cast, cap, trained", [
    (False, False, None, True), (False, False, 30.0, True), (False, False, None, False), (True, False, None, True),
    (True, True, None, True), (True, False, 30.0, True), (True, False, None, False)])
def test_the_loss_holds_what_the_plan_says(width, chunk, half, cast, cap, trained):
    dtype = torch.bfloat16 if half and not cast else torch.float32
    head = torch.nn.Linear(width, IDS, bias=False, dtype=dtype).requires_grad_(trained)
    hidden = torch.randn(TOKENS, width, dtype=dtype, requires_grad=True)
    targets, weights = torch.randint(0, IDS, (TOKENS,)), torch.ones(TOKENS)
    with Held([head.weight, hidden, targets, weights]) as held, torch.autocast("cpu", torch.bfloat16, enabled=cast):
        weighted_loss(hidden, head, targets, weights, cap=cap, chunk=chunk)[0].backward()
    planned = Head(ids=IDS, width=width, trained=trained, capped=cap is not None, chunk=chunk).bytes(TOKENS, half, cast)
    assert held.most == pytest.approx(planned, rel=0.02)
