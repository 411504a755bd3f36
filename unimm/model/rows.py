"""How the rows that a published table lacks start, in and out.

    W width   K old rows   M new rows

Everything is drawn from torch's random state on the host, before DeepSpeed divides anything: the same on every rank.
"""

import torch
from torch import Tensor, nn

from unimm.config.check import ConfigError
from unimm.config.model import ImageIn, ImageOut, Rows, SharedSoftmax, SharedTable
from unimm.vocab import Vocab

AT_ONCE = 1 << 16
"""Rows of a table in float32 at one time, beside the table."""


@torch.no_grad()
def start_rows(backbone: nn.Module, vocab: Vocab, known: int, image_in: ImageIn, image_out: ImageOut,
               code_vectors: dict[str, Tensor]) -> None:
    """Start the rows from `known` up to `vocab.rows` in both tables of a causal LM.

    Raises ConfigError where 'codebook' lacks vectors, or a tied head is to start otherwise than its table.
    """
    table, head = (layer.weight for layer in (backbone.get_input_embeddings(), backbone.get_output_embeddings()))
    shared = image_in if isinstance(image_in, SharedTable) else SharedTable()
    out = image_out.rows if isinstance(image_out, SharedSoftmax) else "as_read"
    if table is head and out != "as_read":
        raise ConfigError(f"image_out.rows is {out!r}, but this backbone reads and writes through one table; set it to "
                          "'as_read', or take a backbone whose head is not tied")
    usual = backbone.config.initializer_range
    _start(table, vocab, known, shared.rows, shared.spread, code_vectors, usual)
    if table is not head:
        _start(head, vocab, known, shared.rows if out == "as_read" else out, shared.spread, code_vectors, usual)
        bias = backbone.get_output_embeddings().bias
        if bias is not None and known < vocab.rows:
            bias[known:vocab.rows] = bias[:known].mean() if known else 0.0


def _start(table: Tensor, vocab: Vocab, known: int, rows: Rows | str, spread: float, vectors: dict[str, Tensor],
           usual: float) -> None:
    old, new = table[:known], table[known:vocab.rows]
    if not len(new):
        return
    if rows == "zero":
        new.zero_()
    elif not known or rows == "normal":
        new.normal_(0.0, float(_moments(old)[1].diagonal().sqrt().mean()) if known else usual)
    elif rows == "mean":
        new.copy_(_moments(old)[0])
    else:
        new.copy_(like(old, len(new), spread))
    if rows == "codebook":
        width = float(table[:known].std(0).mean()) if known else usual
        for r in vocab.ranges.values():
            if r.shared and r.start >= known:
                table[r.start:r.stop] = _projected(r.name, vectors, table.shape[1], width).to(table)


def like(old: Tensor, count: int, spread: float = 1.0) -> Tensor:
    """float32 (count, W) drawn from the normal with the mean of `old` (K, W) and `spread` squared its covariance.

    Through the Cholesky factor of the covariance, (W, W) in float64: 128 MiB at a width of 4,096. What K rows of fewer
    than W dimensions leave undetermined has a millionth of the mean variance.
    """
    mean, covariance = _moments(old)
    jitter = 1e-6 * covariance.diagonal().mean().clamp_min(1e-30)
    factor = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance), dtype=covariance.dtype)).float()
    drawn = [mean.float() + spread * torch.randn(min(AT_ONCE, count - at), len(mean)) @ factor.T
             for at in range(0, count, AT_ONCE)]
    return torch.cat(drawn)


def _moments(old: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (W,) and covariance (W, W) of rows, float64, from a few rows at a time."""
    mean = sum(part.double().sum(0) for part in old.split(AT_ONCE)) / len(old)
    products = (part.float() - mean.float() for part in old.split(AT_ONCE))
    return mean, sum((part.T @ part).double() for part in products) / len(old)


def _projected(name: str, code_vectors: dict[str, Tensor], width: int, spread: float) -> Tensor:
    """Codes' own vectors, centred, through a random projection to `width` with the table's spread."""
    if name not in code_vectors:
        raise ConfigError(f"image_in.rows is 'codebook', but codebook {name!r} has no vectors; use 'covariance' or "
                          "'normal'")
    vectors = code_vectors[name].float()
    vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp_min(1e-6)
    return vectors @ torch.randn(vectors.shape[1], width) * (spread / vectors.shape[1] ** 0.5)
