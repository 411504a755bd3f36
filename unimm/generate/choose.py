"""From logits to one id a row: temperature, top-k, top-p, and a random stream of each row's own."""

import numpy as np
import torch


class RowRandom:
    """One random stream a row, so that a row's result does not depend on its neighbours."""

    def __init__(self, seeds: list[int]):
        self._streams = [np.random.default_rng(seed) for seed in seeds]

    def uniform(self, rows: np.ndarray) -> np.ndarray:
        """float64 (len(rows),) in [0, 1)."""
        return np.array([self._streams[row].random() for row in rows])


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance on logits, `u + s (c - u)` (Ho & Salimans 2022)."""
    return unconditional + scale * (conditional - unconditional)


def choose(logits: torch.Tensor, uniform: np.ndarray, temperature: float, top_k: int = 0,
           top_p: float = 1.0) -> np.ndarray:
    """The chosen column of each row of logits (B, V), int64 (B,); greedy at temperature 0.

    `uniform` (B,) decides by inverting the cumulative distribution over columns.
    """
    if temperature == 0:
        return logits.argmax(-1).numpy(force=True)
    logits = logits.double() / temperature
    if 0 < top_k < logits.shape[-1]:
        floor = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # the first column always stays
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    cumulative = probabilities.cumsum(-1)
    mark = torch.as_tensor(uniform, dtype=cumulative.dtype, device=cumulative.device)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, mark, right=True)[:, 0]
    return chosen.clamp_max(logits.shape[-1] - 1).numpy(force=True)
