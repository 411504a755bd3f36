"""Finding the newest whole checkpoint, and reading from it."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from unimm.checkpoint.pieces import Pieces


def take_up(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that a run continues from; None where there is none at all. Rank 0 calls this alone, once.

    Tidies what a kill left, and sets newer, damaged ones aside, saying so. Raises CheckpointError where all are damaged.
    """
    raise NotImplementedError


def newest(folder: Path, damaged: Callable[[Path, str], None] = lambda path, why: None) -> Path | None:
    """The newest checkpoint in `folder` that verifies; nothing is changed on disk.

    `damaged(path, why)` is called for each newer one that does not. Raises CheckpointError where all are damaged.
    """
    raise NotImplementedError


def read_state(path: Path) -> dict:
    return json.loads((path / "state.json").read_bytes())


def read_recipe(path: Path) -> dict:
    return json.loads((path / "recipe.json").read_bytes())


def open_pieces(path: Path) -> Pieces:
    """Reader of the training state: `read(name, start, stop) -> {kind: 1-D tensor}`."""
    return Pieces(path.glob("training-*.safetensors"))


def load_weights(path: Path, module: nn.Module, ema: bool = False) -> None:
    """Put a verified checkpoint's weights into `module`; with `ema` their running averages where they have any.

    Raises CheckpointError where names or shapes differ, or where averages are asked for and there are none.
    """
    raise NotImplementedError
