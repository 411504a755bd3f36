"""A published checkpoint in transformers' format: what it is and how to read each tensor. Nothing in it is executed.

    folder or hub id --open_release--> Release (config, kind, tensors by name) --check--> what the class itself has

"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unimm.errors import UserError
from unimm.weights import Stored, open_weights, read_json

UNIFIED = ("chameleon", "emu3", "janus")
TOKENIZER = "model.vqmodel."
"""What the names of their image tokenizers begin with."""
LEFTOVERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""Buffers that older versions of transformers saved and newer ones compute."""


class ConvertError(UserError):
    """A checkpoint that can't be converted: damaged, of another model, or nothing that the other side can hold."""


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


def local_folder(source: str) -> Path:
    """The folder of a path, or of a hub id where a hub is reachable. Raises ConvertError."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ConvertError(f"{source}: no such folder; give a checkpoint's folder, a run's, or a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "*.safetensors"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConvertError(f"{source}: no such folder here, and no hub gave it ({why}); download it and give the "
                           "folder") from None


def open_release(folder: Path, unpickle: bool = False) -> Release:
    """Read the configuration and every header. Raises ConvertError or StoredError, one line naming the file and the
    remedy."""
    config = read_json(folder / "config.json")
    _supported(folder, config)
    tensors = open_weights(folder, unpickle)
    if not tensors:
        raise ConvertError(f"{folder}: its files hold no tensors of a {config['model_type']}; download it again")
    return Release(folder, config, tensors)


def _supported(folder: Path, config: dict) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in UNIFIED or (kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.get("is_encoder_decoder")):
        return
    own = "; its own code (auto_map) is never run" if "auto_map" in config else ""
    raise ConvertError(f"{folder}: model_type {kind!r} is not one that converts{own}; those that do are "
                       f"{', '.join(UNIFIED)} and the decoder-only causal language models of transformers (llama, "
                       "qwen3, gemma3_text, ...)")


def spelled(kind: str, name: str) -> str:
    """A release's name -> that of transformers' class: Emu3's were written, and still are, by older ones."""
    if kind != "emu3":
        return name
    name = re.sub(r"^text_model\.lm_head\.", "lm_head.", name)
    name = re.sub(r"^(model\.)?text_model\.(model\.)?", "model.text_model.", name)
    return re.sub(r"^vqmodel\.", TOKENIZER, name)


def class_of(folder: Path) -> nn.Module:
    """The class that a folder's config.json names, on the meta device, with transformers' own names and shapes.

    Raises ConvertError where the configuration is not one.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            kind = AutoModelForImageTextToText if config.model_type in UNIFIED else AutoModelForCausalLM
            return kind.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, StrictDataclassError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConvertError(f"{folder / 'config.json'} describes no model: {why}; download it again") from None


def check(release: Release, model: nn.Module) -> set[str]:
    """Compare a release's tensors with the class's; the names of those that the class lacks and may lack.

    Raises ConvertError for a missing, foreign or misshapen tensor.
    """
    ours = model.state_dict()
    theirs = {spelled(release.kind, name): name for name in release.tensors}
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
