"""A checkpoint: a folder a person can read, whole or not there.

    step-00001234/
      model.safetensors   the weights, under the module's own names
      training-00000.safetensors   one per rank: its pieces of the masters and what the optimizer keeps
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
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + n) of the flattened parameter `name`; `tensors` float32 (n,) by what they are."""

    name: str
    start: int
    tensors: dict[str, Tensor]


def save(folder: Path, step: int, weights: dict[str, Tensor], pieces: list[Piece], state: dict, recipe: dict,
         keep: int, ranks: Ranks = Ranks()) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; every rank calls this together.

    `weights` and the two JSON values are rank 0's; `pieces` are each rank's own.
    Raises CheckpointError where the folder can't be written; what was there before is then untouched.
    """
    final = folder / f"step-{step:08d}"
    part = final.with_name(final.name + ".part")
    try:
        if ranks.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        ranks.barrier()
        if pieces:
            _save_tensors(part / f"training-{ranks.rank:05d}.safetensors", {
                f"{p.name}[{p.start}:{p.start + len(t)}].{kind}": t for p in pieces for kind, t in p.tensors.items()})
            _sync(part / f"training-{ranks.rank:05d}.safetensors")
        ranks.barrier()
        if ranks.rank == 0:
            _write_common(part, weights, state | {"step": step, "world": ranks.world}, recipe)
            if final.exists():
                set_aside(final)
            os.rename(part, final)
            _sync(folder)
            for old in _folders(folder, upto=step)[keep:]:
                shutil.rmtree(old)
        ranks.barrier()
    except OSError as error:
        raise CheckpointError(f"can't write the checkpoint {final}: {_first_line(error)}") from error
    return final


def _write_common(part: Path, weights: dict[str, Tensor], state: dict, recipe: dict) -> None:
    _save_tensors(part / "model.safetensors", weights)
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


def _save_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}, file)
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


def reader(path: Path) -> Callable[[str, int, int], dict[str, Tensor]]:
    """read(name, start, stop) -> what was saved of those elements, by what it is, whoever saved which part."""
    from safetensors import safe_open

    files = [safe_open(file, framework="pt") for file in sorted(path.glob("training-*.safetensors"))]
    parts: dict[str, dict[str, list]] = {}
    for file in files:
        for key in file.keys():
            name, start, stop, kind = re.fullmatch(r"(.+)\[(\d+):(\d+)\]\.(\w+)", key).groups()
            parts.setdefault(name, {}).setdefault(kind, []).append((int(start), int(stop), file, key))

    def read(name: str, start: int, stop: int) -> dict[str, Tensor]:
        if name not in parts:
            raise CheckpointError(f"{path} has no training state for {name}")
        found = {}
        for kind, places in parts[name].items():
            places.sort(key=lambda place: place[0])
            found[kind] = torch.cat([file.get_slice(key)[max(start - a, 0):stop - a] for a, b, file, key in places
                                     if a < stop and b > start])
        return found

    return read


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
