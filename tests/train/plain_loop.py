"""The toy's training as a plain PyTorch loop, and every way of dividing its steps."""

import torch
from torch.nn import functional as F
from train_toys import Stream, ToyLM


def divisions(ranks: int) -> list[dict]:
    """Runs of engine_runs.py: each ZeRO stage, accumulated 1, 2 and 4 times."""
    return [{"name": f"zero {zero}, {n} accumulated", "module": "lm", "stage": {"zero": zero, "micro": 8 // ranks // n}}
            for zero in range(4) for n in (1, 2, 4)]


def plain_loop(steps: int = 20) -> list[float]:
    """The toy's training written out: the mean over all learned tokens, clipped, AdamW, rise, hold and fall."""
    net, stream, losses = ToyLM(), Stream("lm"), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    rates = [0.005, 0.01] + [0.01] * 8 + [0.01 * left / 10 for left in range(10, 0, -1)]
    for step in range(steps):
        batch = stream.next()
        h = net.embed.weight[torch.from_numpy(batch.ids)]
        for block in net.blocks:
            h = h + torch.tanh(h @ block.weight.T)
        logits = (h @ net.head.weight.T)[torch.from_numpy(batch.learn)]
        loss = F.cross_entropy(logits, torch.from_numpy(batch.targets[batch.learn]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
