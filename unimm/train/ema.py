"""A moving average of the trained weights in fp32, element by element: it neither knows nor cares how they are cut."""

import torch
from torch import Tensor


class Average:
    """One average beside every tensor of masters, on the same device, started from them."""

    def __init__(self, masters: list[Tensor], decay: float):
        self.masters, self.decay = masters, decay
        self.of = {master: master.detach().clone().float() for master in masters}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the masters after their update number `updates`, from 1.

        The rising decay is TensorFlow's ExponentialMovingAverage(num_updates): (1 + n) / (10 + n).
        """
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_([self.of[m] for m in self.masters], [m.detach() for m in self.masters], 1 - decay)
