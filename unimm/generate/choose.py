"""From logits to one id a row: temperature, filters, and a random stream of each row's own."""

import numpy as np
import torch

from unimm.config.sampling import Choice


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


def adaptive_top_k(logits: torch.Tensor, most: int) -> torch.Tensor:
    """How many ids each row of logits (B, V) keeps, int64 (B,), between 1 and `most`: more where it is less certain.

    `1 + (most - 1) sigmoid(H - 5)`, H being the entropy of the guided logits in nats (PURE, arXiv:2503.11073; in
    nonwhy/PURE, commit 4fb5553, pure/inference_solver.py, `_calculate_dynamic_top_k`, where `most` is 2000).
    """
    entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1).clamp(0, 10)
    return (1 + (most - 1) * torch.sigmoid(entropy - 5)).round().long()


def choose(logits: torch.Tensor, uniform: np.ndarray, how: Choice) -> np.ndarray:
    """The chosen column of each row of logits (B, V), int64 (B,); greedy at temperature 0.

    `uniform` (B,) decides by inverting the cumulative distribution over columns.
    """
    if how.temperature == 0:
        return logits.argmax(-1).numpy(force=True)
    if how.adaptive_k:
        keep = adaptive_top_k(logits, how.adaptive_k).clamp_max(logits.shape[-1])
        floor = logits.sort(-1, descending=True).values.gather(-1, keep[:, None] - 1)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    logits = logits.double() / how.temperature
    if 0 < how.top_k < logits.shape[-1]:
        floor = logits.topk(how.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    probabilities = logits.softmax(-1)
    if how.min_p:
        probabilities = probabilities.masked_fill(probabilities < how.min_p * probabilities.amax(-1, True), 0.0)
    if how.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # the first column always stays
        ordered = ordered.masked_fill(before >= how.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    cumulative = probabilities.cumsum(-1)
    mark = torch.as_tensor(uniform, dtype=cumulative.dtype, device=cumulative.device)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, mark, right=True)[:, 0]
    return chosen.clamp_max(logits.shape[-1] - 1).numpy(force=True)
