"""One number per optimizer step, and what follows from it: ranks x accumulated x rows x tokens."""

from typing import NamedTuple

from unimm.config.check import ConfigError, nearest
from unimm.config.stages import NextToken, PictureStage


class Shares(NamedTuple):
    """How a step is divided. A *slot* is one forward on one rank; slots count over the whole step, rank after rank."""

    ranks: int
    accumulated: int
    rows: int
    """Rows (or images) of one slot."""
    tokens: int
    """Tokens of a row; 0 where rows are images."""

    @property
    def total(self) -> int:
        """Tokens (or images) of an optimizer step over all ranks."""
        return self.ranks * self.accumulated * self.rows * (self.tokens or 1)

    def __str__(self) -> str:
        what, each = ("tokens", f"{self.rows:,} rows x {self.tokens:,} tokens") if self.tokens else (
            "images", f"{self.rows:,} images")
        return f"{self.total:,} {what} a step = {self.ranks:,} ranks x {self.accumulated:,} accumulated x {each}"

    def slots(self, batch, rank: int) -> dict:
        """This rank's rows of a step, cut by slot number. `batch` has a length and can be sliced."""
        first = rank * self.accumulated
        return {first + i: batch[i * self.rows:(i + 1) * self.rows] for i in range(self.accumulated)}


def shares(stage: NextToken | PictureStage, world: int) -> Shares:
    """Divide a step of `stage` among `world` ranks. Raises ConfigError naming the nearest numbers that can be."""
    tokens = stage.seq_len if isinstance(stage, NextToken) else 0
    count, field, unit = (stage.rows, "step_tokens", tokens) if tokens else (stage.batch, "batch", 1)
    if count % world:
        raise ConfigError(f"{type(stage).__name__}.{field} is {count * unit:,}, which {world} processes can't share "
                          f"evenly; make it a multiple of {world * unit:,}: {nearest(count * unit, world * unit)}")
    own = count // world
    accumulated = next(n for n in range(1, own + 1) if own % n == 0 and own // n <= (stage.micro or own))
    return Shares(ranks=world, accumulated=accumulated, rows=own // accumulated, tokens=tokens)
