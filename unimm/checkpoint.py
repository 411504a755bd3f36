"""A checkpoint: a folder a person can read, whole or not there.

    step-00001234/
      model.safetensors   the weights, under the module's own names
      rank-00000.pt       one per rank: optimizer shard, random state, sums of the open metrics window
      state.json          step, the stream's place, seconds and tokens so far
      recipe.json         the resolved recipe
      manifest.json       size and sha256 of each file above, and of itself; written last

Everything is written into `step-00001234.part` and synced to disk, the manifest last, then renamed; a
process killed at any moment leaves the older checkpoints and at most a `.part`. There is no "latest"
pointer: the newest folder whose manifest holds is the one to continue from.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unimm.disk import file_digest
from unimm.errors import UserError

NAME = re.compile(r"step-\d{8}")


class CheckpointError(UserError):
    """A checkpoint that can't be written, is damaged, or belongs to something else."""


@dataclass(frozen=True)
class Ranks:
    """What saving needs to know about the other processes."""

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None


def save(folder: Path, step: int, module: nn.Module, shard: dict, state: dict, recipe: dict, keep: int,
         ranks: Ranks = Ranks()) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; every rank calls this together.

    `module` and the two JSON values are rank 0's; `shard` is each rank's own (tensors and plain values).
    Raises CheckpointError where the folder can't be written; what was there before is then untouched.
    """
    final = folder / f"step-{step:08d}"
    part = final.with_name(final.name + ".part")
    try:
        if ranks.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        ranks.barrier()
        torch.save(shard, part / f"rank-{ranks.rank:05d}.pt")
        _sync(part / f"rank-{ranks.rank:05d}.pt")
        ranks.barrier()
        if ranks.rank == 0:
            _write_common(part, module, state | {"step": step, "world": ranks.world}, recipe)
            if final.exists():
                set_aside(final)
            os.rename(part, final)
            _sync(folder)
            for old in _folders(folder, upto=step)[keep:]:
                shutil.rmtree(old)
        ranks.barrier()
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise CheckpointError(f"can't write the checkpoint {final}: {_first_line(error)}") from error
    return final


def _write_common(part: Path, module: nn.Module, state: dict, recipe: dict) -> None:
    save_weights(part / "model.safetensors", module)
    (part / "state.json").write_text(json.dumps(state, indent=1))
    (part / "recipe.json").write_text(json.dumps(recipe, indent=1))
    files = sorted(p for p in part.iterdir())
    for path in files:
        _sync(path)
    manifest = {"files": {p.name: {"bytes": p.stat().st_size, "sha256": file_digest(p)} for p in files}}
    manifest["sha256"] = _hash_of(manifest["files"])
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(part / "manifest.json")
    _sync(part)


def verify(path: Path) -> None:
    """Read every byte of a checkpoint against its manifest. Raises CheckpointError naming the first fault."""
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise CheckpointError(f"{path} is no whole checkpoint: it has no manifest.json")
    try:
        content = json.loads(manifest.read_bytes())
        files, own = content["files"], content["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} is damaged: it is no manifest") from error
    if own != _hash_of(files):
        raise CheckpointError(f"{manifest} is damaged: its checksum differs")
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} is damaged: {name} is missing")
        if file.stat().st_size != facts["bytes"]:
            raise CheckpointError(f"{file} is damaged: it has {file.stat().st_size:,} bytes, not {facts['bytes']:,}")
        if file_digest(file) != facts["sha256"]:
            raise CheckpointError(f"{file} is damaged: its checksum differs")


def newest(folder: Path, damaged: Callable[[Path, str], None] = lambda path, why: None) -> Path | None:
    """The newest checkpoint in `folder` that verifies, or None where there is none at all.

    `damaged(path, why)` is called for each newer one that does not. Raises CheckpointError where all are damaged.
    """
    found = _folders(folder)
    for path in found:
        try:
            verify(path)
            return path
        except CheckpointError as error:
            damaged(path, str(error))
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} is whole; start in another folder")
    return None


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that is not to be used or overwritten; it is kept as `NAME.damaged`."""
    aside, n = path.with_name(path.name + ".damaged"), 2
    while aside.exists():
        aside, n = path.with_name(f"{path.name}.damaged-{n}"), n + 1
    path.rename(aside)
    return aside


def read_state(path: Path) -> dict:
    return json.loads((path / "state.json").read_bytes())


def read_recipe(path: Path) -> dict:
    return json.loads((path / "recipe.json").read_bytes())


def save_weights(file: Path, module: nn.Module) -> None:
    """Write `module`'s state as safetensors; tensors that share memory under several names are written once."""
    from safetensors.torch import save_file

    aliases = _aliases(module)
    state = {name: t for name, t in module.state_dict().items() if name not in aliases}
    # A copy: under ZeRO the weights are views of one flat buffer, which safetensors refuses.
    save_file({name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}, file)
    file.chmod(0o644)  # safetensors makes it readable by its owner alone


def load_weights(path: Path, module: nn.Module) -> None:
    """Put a verified checkpoint's weights into `module`. Raises CheckpointError where names or shapes differ."""
    from safetensors.torch import load_file

    saved = load_file(path / "model.safetensors")
    here = {name: t for name, t in module.state_dict().items() if name not in _aliases(module)}
    for name in sorted(saved.keys() | here.keys()):
        ours = f"shape {tuple(here[name].shape)}" if name in here else "none"
        theirs = f"shape {tuple(saved[name].shape)}" if name in saved else "none"
        if ours != theirs:
            raise CheckpointError(f"{path} is of another model: for {name} it has {theirs}, this model {ours}")
    module.load_state_dict(saved, strict=False)


def _aliases(module: nn.Module) -> set[str]:
    """Names whose tensor an earlier name of the state already covers (tied weights)."""
    seen, aliases = set(), set()
    for name, t in module.state_dict().items():
        place = (t.data_ptr(), t.shape, t.stride())
        if t.numel() and place in seen:
            aliases.add(name)
        seen.add(place)
    return aliases


def load_shard(path: Path, rank: int) -> dict:
    """What `rank` saved, by the loader that runs no code."""
    return torch.load(path / f"rank-{rank:05d}.pt", map_location="cpu", weights_only=True)


def random_state() -> dict:
    """The state of every generator a step may draw from: torch (and its GPU), numpy, Python."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(),
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest]}


def set_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def _folders(folder: Path, upto: int = 10**8) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    found = [p for p in folder.glob("step-*") if NAME.fullmatch(p.name) and int(p.name[5:]) <= upto]
    return sorted(found, reverse=True)


def _hash_of(files: dict) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
