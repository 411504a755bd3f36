"""A published checkpoint in transformers' format: what it is and how to read each tensor. Nothing in it is executed.

    folder or hub id --open_release--> Release (config, kind, tensors by name) --check--> what the class itself has

Read are safetensors; pickles only on request, and then by torch's reader of tensors alone.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unimm.checkpoint.tensors import DTYPES, INDEX, WEIGHTS
from unimm.errors import UserError
from unimm.images.released import unpickled

UNIFIED = ("chameleon", "emu3", "janus")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TYPES = {name: dtype for dtype, name in DTYPES.items()}
LEFTOVERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""Buffers that older versions of transformers saved and newer ones compute."""


class ConvertError(UserError):
    """A checkpoint that can't be converted: damaged, of another model, or nothing that the other side can hold."""


@dataclass(frozen=True)
class Stored:
    """One tensor on disk: what its header says, and how to read it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Release:
    folder: Path
    config: dict
    tensors: dict[str, Stored]

    @property
    def kind(self) -> str:
        """transformers' `model_type`."""
        return self.config["model_type"]


def is_run(source: str) -> bool:
    """Whether this is a run's folder rather than one in transformers' format, which may also hold a recipe."""
    return (Path(source) / "recipe.json").is_file() and not (Path(source) / "config.json").is_file()


def local_folder(source: str, weights: bool = True) -> Path:
    """The folder of a path, or of a hub id where a hub is reachable. Raises ConvertError."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ConvertError(f"{source}: no such folder; give a checkpoint's folder, a run's, or a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.jinja", "LICENSE*"] + (["*.safetensors"] if weights else [])
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConvertError(f"{source}: no such folder here, and no hub gave it ({why}); download it and give the "
                           "folder") from None


def open_release(folder: Path, unpickle: bool = False) -> Release:
    """Read the configuration and every header. Raises ConvertError, one line naming the file and the remedy."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    _supported(folder, config)
    files = _files_of(folder, unpickle)
    tensors: dict[str, Stored] = {}
    for file in dict.fromkeys(files.values()):
        tensors |= _pickle(file) if file.suffix in PICKLES else safetensors(file)
    lost = [name for name in files if name != "*" and name not in tensors]
    if lost:
        raise ConvertError(f"{folder}: {files[lost[0]].name} lacks {lost[0]}, which the index promises; "
                           "download both again")
    if not tensors:
        raise ConvertError(f"{folder}: its files hold no tensors of a {kind}; download it again")
    return Release(folder, config, tensors)


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConvertError(f"{path.parent}: no {path.name}; give a folder that transformers' save_pretrained wrote") \
            from None
    except ValueError:
        raise ConvertError(f"{path} is damaged: it is no JSON; download it again") from None
    if not isinstance(found, dict):
        raise ConvertError(f"{path} is damaged: it holds no object; download it again")
    return found


def _supported(folder: Path, config: dict) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in UNIFIED or (kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.get("is_encoder_decoder")):
        return
    own = "; its own code (auto_map) is never run" if "auto_map" in config else ""
    raise ConvertError(f"{folder}: model_type {kind!r} is not one that converts{own}; those that do are "
                       f"{', '.join(UNIFIED)} and the decoder-only causal language models of transformers (llama, "
                       "qwen3, gemma3_text, ...)")


def _files_of(folder: Path, unpickle: bool) -> dict[str, Path]:
    """Tensor name -> file, by the index; "*" -> file where there is only one."""
    if (folder / INDEX).is_file():
        return _indexed(folder / INDEX)
    if (folder / WEIGHTS).is_file():
        return {"*": folder / WEIGHTS}
    pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if not pickles:
        raise ConvertError(f"{folder}: no weights ({WEIGHTS} or {INDEX}); download them")
    if not unpickle:
        raise ConvertError(f"{folder}: only pickles ({pickles[0].name}), which can run code when they are read; get "
                           "the safetensors, or read their tensors alone with --unpickle")
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        return _indexed(index)
    if len(pickles) > 1:
        raise ConvertError(f"{folder}: {len(pickles)} pickles and no index; leave the one that holds the model")
    return {"*": pickles[0]}


def _indexed(index: Path) -> dict[str, Path]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise ConvertError(f"{index} is damaged: it has no weight_map; download it again")
    for file in dict.fromkeys(found.values()):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise ConvertError(f"{index.parent}: the shard {file} is missing; download it")
    return {name: index.parent / file for name, file in found.items()}


def safetensors(file: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="pt")
        heads = {name: opened.get_slice(name) for name in opened.keys()}
        return {name: Stored(TYPES[head.get_dtype()], tuple(head.get_shape()),
                             lambda name=name: opened.get_tensor(name)) for name, head in heads.items()}
    except (SafetensorError, OSError) as error:
        raise ConvertError(f"{file} is damaged or cut short ({error}); download it again") from None
    except KeyError as error:
        raise ConvertError(f"{file}: torch has no type {error}; convert it to bfloat16 first") from None


def _pickle(file: Path) -> dict[str, Stored]:
    return {name: Stored(t.dtype, tuple(t.shape), lambda t=t: t) for name, t in unpickled(file, ConvertError).items()}


def class_of(folder: Path) -> nn.Module:
    """The class that a folder's config.json names, on the meta device, with transformers' own names and shapes.

    Raises ConvertError where the configuration is not one.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        ChameleonForConditionalGeneration,
        Emu3ForConditionalGeneration,
        JanusForConditionalGeneration,
    )

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            match config.model_type:
                case "chameleon":
                    return ChameleonForConditionalGeneration(config)
                case "emu3":
                    return Emu3ForConditionalGeneration(config)
                case "janus":
                    return JanusForConditionalGeneration(config)
                case _:
                    return AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, StrictDataclassError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConvertError(f"{folder / 'config.json'} describes no model: {why}; download it again") from None


def check(release: Release, model: nn.Module, spelled: Callable[[str], str]) -> set[str]:
    """Compare a release's tensors with the class's; the names of those that the class lacks and may lack.

    spelled  the release's name -> the class's. Raises ConvertError for a missing, foreign or misshapen tensor.
    """
    ours = model.state_dict()
    theirs = {spelled(name): name for name in release.tensors}
    named = type(model).__name__
    for name, own in theirs.items():
        shape = release.tensors[own].shape
        if name in ours and tuple(ours[name].shape) != shape:
            raise ConvertError(f"{release.folder}: {own} has shape {shape}, but the {named} of its config.json has "
                               f"{tuple(ours[name].shape)}; the weights are another model's")
    missing = [name for name in ours if name not in theirs and not _elsewhere(model, name, theirs)]
    if missing:
        raise ConvertError(f"{release.folder}: lacks {len(missing)} of {len(ours)} tensors of a {named}, the first "
                           f"{missing[0]}; download it whole")
    allowed = [LEFTOVERS, *map(re.compile, model._keys_to_ignore_on_load_unexpected or ())]
    extra = {own for name, own in theirs.items() if name not in ours}
    foreign = sorted(name for name in extra if not any(p.search(name) for p in allowed))
    if foreign:
        raise ConvertError(f"{release.folder}: holds {len(foreign)} tensors that a {named} does not have under these "
                           f"names, the first {foreign[0]}; save it with transformers' save_pretrained, or take "
                           "another checkpoint")
    return extra


def _elsewhere(model: nn.Module, name: str, present: Iterable[str]) -> bool:
    """Whether a missing tensor is tied to one that is there."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return name in parameters and any(other in present for other, p in parameters.items() if p is parameters[name])
