"""The training state in pieces: which elements of which parameter this rank's optimizer holds, whatever cut them.

    Held            name, start, size  <-  owner.view(-1)[offset : offset + size]
    Masters         all that is held here: out as pieces, back from pieces, whole weights, the weights to show

An *owner* is a tensor that the optimizer updates: a parameter itself without ZeRO, DeepSpeed's flat fp32 piece of many
with it. Pieces name elements of the module's own parameters, so they are the same at any world size and ZeRO stage.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unimm.checkpoint.folders import CheckpointError
from unimm.checkpoint.read import keyed
from unimm.train import ranks

Read = Callable[[str, int, int], dict[str, Tensor]]
"""(name, start, stop) -> the saved tensors of those elements: "master" and whatever the optimizer keeps."""


class Held(NamedTuple):
    """Elements [start, start + size) of parameter `name` of `shape`: `size` of owner from `offset` on.

    moments  what the optimizer keeps for them: "exp_avg" and "exp_avg_sq", or "momentum"
    """

    name: str
    shape: tuple[int, ...]
    moments: tuple[str, ...]
    start: int
    size: int
    owner: Tensor
    offset: int

    def of(self, like_owner: Tensor) -> Tensor:
        """This piece of the owner, or of a tensor laid out like it."""
        return like_owner.detach().view(-1)[self.offset:self.offset + self.size]


def held_whole(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Held]:
    """Every trained parameter as its own owner."""
    muon = {p: group["muon"] for group in optimizer.param_groups for p in group["params"]}
    return {p: Held(name=name, shape=tuple(p.shape), start=0, size=p.numel(), owner=p, offset=0,
                    moments=("momentum",) if muon[p] else ("exp_avg", "exp_avg_sq"))
            for name, p in module.named_parameters() if p.requires_grad}


class Masters:
    """The fp32 weights that the optimizer updates here, with its state and their average.

    ema       decay of a moving average of the masters, fp32, beside each on its device; 0: none
    shared    whether every rank holds the same: then rank 0's pieces serve all
    gathered  makes parameters whole inside `with`, every rank together; without it they are
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, held: list[Held], ema: float, *,
                 shared: bool = True, gathered: Callable[[list], AbstractContextManager] = nullcontext):
        self.module, self.optimizer, self.held, self.ema = module, optimizer, held, ema
        self.shared, self.gathered, self.updates = shared, gathered, 0
        self.owners = list(dict.fromkeys(h.owner for h in held))
        self.average = {owner: owner.detach().clone().float() for owner in self.owners} if ema else {}

    @torch.no_grad()
    def updated(self) -> None:
        """To be called after every update of the optimizer.

        The average's rising decay is TensorFlow's ExponentialMovingAverage(num_updates): (1 + n) / (10 + n).
        """
        self.updates += 1
        if self.ema:
            decay = min(self.ema, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(list(self.average.values()), [o.detach() for o in self.owners], 1 - decay)

    def pieces(self) -> dict[str, Tensor]:
        """What is held here, under the keys of a checkpoint."""
        own = [] if self.shared and ranks.rank() > 0 else self.held
        return {key: t for h in own for key, t in keyed(
            h.name, h.start, {kind: h.of(tensor) for kind, tensor in self._state(h).items()}).items()}

    def _state(self, h: Held) -> dict[str, Tensor]:
        """Every tensor laid out like its owner, by the name under which it is saved."""
        moments = {name: t for name, t in self.optimizer.state.get(h.owner, {}).items() if name in h.moments}
        return {"master": h.owner} | moments | ({"ema": self.average[h.owner]} if self.ema else {})

    @torch.no_grad()
    def restore(self, read: Read, updates: int) -> None:
        """Take back what was saved after so many updates. Raises CheckpointError where it is another optimizer's."""
        self.updates = updates
        for h in self.held if updates else ():
            if not self.optimizer.state.get(h.owner):
                self.optimizer.state[h.owner] = {m: torch.zeros_like(h.owner) for m in h.moments}
            # Also where there was one: a run that goes back has made more updates than it is to have made.
            self.optimizer.state[h.owner]["step"] = torch.tensor(float(updates), device=h.owner.device)
        for h in self.held:
            saved, state = read(h.name, h.start, h.start + h.size), self._state(h)
            if missing := sorted(state.keys() - saved.keys() - {"ema"}):
                raise CheckpointError(f"the checkpoint has no {', '.join(missing)} of {h.name}: it was saved with "
                                      "another optimizer; continue with that one, or train into another folder")
            for key, tensor in state.items():
                h.of(tensor).copy_(saved.get(key, saved["master"]))  # an average that begins now starts from there

    def weights(self) -> dict[str, Tensor]:
        """What the stage leaves, whole, by the module's own names, in rank 0's host memory; {} on other ranks.

        The average where there is one. Every rank calls this; at most one parameter more than they hold is brought
        together at a time.
        """
        found, state = {}, self.module.state_dict(keep_vars=True)
        names = {t: name for name, t in reversed(state.items())}  # of tied ones, the first
        for t, name in reversed(names.items()):
            averaged = self.ema and t.requires_grad
            # What DeepSpeed keeps whole must stay so: some modules use it without asking for it.
            with nullcontext() if averaged or t.numel() else self.gathered([t]):
                value = self._averaged(name, t) if averaged else t.detach()
                if ranks.rank() == 0:
                    found[name] = value.to("cpu", copy=True)
        return found

    def _averaged(self, name: str, p: nn.Parameter) -> Tensor:
        """A trained parameter's average, from all ranks; whole on rank 0."""
        shape = getattr(p, "ds_shape", p.shape)
        flat = torch.zeros(shape.numel(), device=ranks.device())
        for h in self.held:
            if h.name == name:
                flat[h.start:h.start + h.size] = h.of(self.average[h.owner])
        if ranks.world() > 1 and not self.shared:
            dist.reduce(flat, dst=0)
        return flat.view(shape).to(p.dtype)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, rank 0's module holds what the stage would leave now. Every rank enters and leaves it."""
        weights = {} if self.gathered is nullcontext and not self.ema else self.weights()
        if not weights:  # as they are; or on other ranks
            yield
            return
        before = {p: p.data for p in self.module.parameters()}
        hooks = [(m, m._forward_hooks, m._forward_pre_hooks) for m in self.module.modules()]
        # By these ZeRO-3 gathers and lets go of weights, all ranks together; here one rank has them whole.
        for m, *_ in hooks:
            m._forward_hooks, m._forward_pre_hooks = {}, {}
        for name, p in self.module.named_parameters():
            p.data = weights[name].to(ranks.device())
        yield
        for p, data in before.items():
            p.data = data
        for m, *both in hooks:
            m._forward_hooks, m._forward_pre_hooks = both
