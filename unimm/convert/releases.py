"""A published checkpoint in transformers' format: what it is and how to read each tensor. Nothing in it is executed.

    folder or hub id --open_release--> Release (config, kind, tensors by name) --check--> what the class itself has

Where each tensor of a release goes, by its name; the way back is written down when it comes in (`Place`).

    release                              run
    (a causal LM) NAME                   checkpoint, backbone.NAME
    model.vqmodel.*                      image_tokenizer/, in our names
    model.language_model.*, ...          checkpoint, as below
    what the class does not hold         backbone/other.safetensors, as it is
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from unimm.config.images import Chameleon, Emu3, ImageTokenizer, LlamaGen, Published
from unimm.errors import UserError
from unimm.weights import DTYPES, Stored, open_weights, read_json

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
    kind: str
    """transformers' `model_type`."""
    tensors: dict[str, Stored]


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

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.model", "*.jinja", "LICENSE*",
                                                              "*.safetensors"]))
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConvertError(f"{source}: no such folder here, and no hub gave it ({why}); download it and give the "
                           "folder") from None


def open_release(folder: Path, unpickle: bool = False) -> Release:
    """Read the configuration and every header. Raises ConvertError or StoredError, one line naming the file and the
    remedy."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.get("is_encoder_decoder")
    if kind not in UNIFIED and not causal:
        own = "; its own code (auto_map) is never run" if "auto_map" in config else ""
        raise ConvertError(f"{folder}: model_type {kind!r} is not one that converts{own}; those that do are "
                           f"{', '.join(UNIFIED)} and the decoder-only causal language models of transformers (llama, "
                           "qwen3, gemma3_text, ...)")
    tensors = open_weights(folder, unpickle)
    if not tensors:
        raise ConvertError(f"{folder}: its files hold no tensors of a {kind}; download it again")
    return Release(folder, kind, tensors)


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
    parameters = dict(model.named_parameters(remove_duplicate=False))
    there = {id(p) for name, p in parameters.items() if name in theirs}  # a tied tensor may lack one of its names
    missing = [name for name in ours if name not in theirs and id(parameters.get(name)) not in there]
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


# "": kept, but no part of our model. `unimm.model.image_input` and `image_output` keep transformers' names.
PARTS = {
    "chameleon": (("", "backbone."),),
    "emu3": (("model.text_model.", "backbone.model."), ("", "backbone.")),
    "gemma3": (("model.language_model.", "backbone.model."), ("model.", ""), ("", "backbone.")),
    "janus": (("model.language_model.", "backbone.model."), ("model.vision_model.", "image_input.vision."),
              ("model.aligner.", "image_input.aligner."), ("model.generation_embeddings.", "image_input.codes."),
              ("model.generation_aligner.", "image_input.code_aligner."),
              ("model.generation_head.", "image_output."), ("", "backbone.")),
}


@dataclass(frozen=True)
class Place:
    """Where a tensor of a release is in the run, and what it was."""

    part: Literal["language", "image_tokenizer", "other"]
    name: str
    dtype: str
    shape: tuple[int, ...]


PLACES = TypeAdapter(dict[str, Place])
"""Of every tensor of a release, to and from JSON."""


def places_of(kind: str, tensors: Mapping[str, Stored | Tensor], drawn: Mapping[str, str],
              extra: Collection[str] = ()) -> dict[str, Place]:
    """Where each of a release's tensors is in a run.

    drawn  names of the image tokenizer's -> ours
    extra  names of those that the class lacks
    """
    places = {}
    for name, tensor in tensors.items():
        own = spelled(kind, name)
        before, after = next(both for both in PARTS.get(kind, (("", "backbone."),)) if own.startswith(both[0]))
        part, there = "other", name
        if name in drawn:
            part, there = "image_tokenizer", drawn[name]
        elif after and name not in extra and not own.startswith(TOKENIZER):
            part, there = "language", after + own.removeprefix(before)
        places[name] = Place(part, there, DTYPES[tensor.dtype], tuple(tensor.shape))
    return places


def tokenizer_of(kind: str, wanted: ImageTokenizer, vq) -> Published:
    """The recipe's image tokenizer at the release's sizes; `vq` is the release's `vq_config`.

    Raises ConvertError where the recipe's is of another architecture.
    """
    shape = {"width": vq.base_channels, "multipliers": tuple(vq.channel_multiplier), "blocks": vq.num_res_blocks,
             "latent": vq.latent_channels, "dim": vq.embed_dim, "weights": "", "unpickle": False}
    match kind, wanted:
        case "chameleon", Chameleon():
            return replace(wanted, **shape, size=vq.num_embeddings, decoder=False)
        case "emu3", Emu3():
            return replace(wanted, **shape, size=vq.codebook_size, attention=tuple(vq.attn_resolutions),
                           frames=vq.temporal_downsample_factor)
        case "janus", LlamaGen():
            return replace(wanted, **shape, size=vq.num_embeddings, attention=(len(vq.channel_multiplier) - 1,))
    raise ConvertError(f"the recipe's image_tokenizer is {wanted.kind!r}, which is not that of a {kind} release; take "
                       "the recipe of this system")
