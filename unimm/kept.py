"""A trained part of a run, kept in a folder: an image tokenizer, or what draws pictures in its place.

    module --keep--> config.json, model.safetensors --fetch--> same

Weights are in our names; config.json holds the module's `config` and the fingerprint of both, since a flipped bit in
safetensors loads as a wrong value without a word.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from unimm.disk import replace_file
from unimm.weights import WEIGHTS, StoredError, open_weights

CONFIG = "config.json"
ELSEWHERE = ("weights", "unpickle")
"""Fields of a configuration that say where weights came from, not what they are."""


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of the module's `config` and of every weight's name, type, shape and bytes, in hexadecimal.

    Where a release's weights were read from leaves no trace in it.
    """
    return _fingerprint(module.config, module.state_dict())


def _fingerprint(made: Any, weights: dict[str, Tensor]) -> str:
    about = {name: value for name, value in dataclasses.asdict(made).items() if name not in ELSEWHERE}
    # A 4 given for a float comes back from JSON as 4.0: compare numbers as floats.
    plain = json.loads(json.dumps(about), parse_int=float)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def keep(module: nn.Module, folder: Path) -> None:
    """Write the module's folder, in place of one that may be there. Raises DiskError.

    A folder is a part's while it has its configuration, which is written last.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    replace_file(folder / WEIGHTS, save({name: t.contiguous() for name, t in module.state_dict().items()}))
    about = {"config": dataclasses.asdict(module.config), "fingerprint": fingerprint(module)}
    replace_file(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def fetch(folder: Path, what: str, kinds: Any, build: Callable[[Any], nn.Module]) -> nn.Module:
    """The module of a folder, on the CPU, in eval mode: what `build` makes of its configuration, one of `kinds`.

    Raises StoredError, one line, where files are missing, damaged or not of one another; `what` names the part in it.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise StoredError(f"{folder} is not {what}: it has no {name}; train it, or copy it whole")
    made, saved = _read_config(folder / CONFIG, what, kinds)
    weights = {name: stored.read() for name, stored in open_weights(folder / WEIGHTS).items()}
    if _fingerprint(made, weights) != saved:
        raise StoredError(f"{folder} differs from what was saved: its fingerprint isn't that in {CONFIG}; copy the "
                          "folder again or train again")
    module = build(made)
    module.load_state_dict(weights)
    return module.eval()


def _read_config(path: Path, what: str, kinds: Any) -> tuple[Any, str]:
    from pydantic import Field, TypeAdapter

    try:
        about = json.loads(path.read_text())
        adapter = TypeAdapter(Annotated[kinds, Field(discriminator="kind")])
        return adapter.validate_python(about["config"], extra="forbid"), about["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise StoredError(f"{path} does not describe {what}: {why}; copy it again") from None
