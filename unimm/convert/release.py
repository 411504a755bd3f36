"""A published checkpoint in transformers' format: what it is and how to read each tensor. Nothing in it is executed.

    folder or hub id --open_release--> Release (config, kind, tensors by name) --check--> what the class itself has

Where each tensor of a release goes, by its name; the way back is written down when it comes in (`Place`).

    release                              run
    (a causal LM) NAME                   checkpoint, backbone.NAME
    model.vqmodel.*                      image_tokenizer/, in our names
    model.language_model.*, ...          checkpoint, as below
    what the class does not hold         backbone/other.safetensors, as it is

Writing what was converted: planned from headers, one file in memory at a time, aside, then renamed.
"""

import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from unimm.config.images import Chameleon, Emu3, ImageTokenizer, LlamaGen, Published
from unimm.disk import Digest, new_folder
from unimm.errors import UserError
from unimm.weights import DTYPES, SPLIT, WEIGHTS, Stored, open_weights, read_json, size_of, write_weights

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


def language_name(kind: str, name: str) -> str | None:
    """The class's name -> that in our checkpoint; None for what our model leaves out."""
    before, after = next(both for both in PARTS.get(kind, (("", "backbone."),)) if name.startswith(both[0]))
    return after + name.removeprefix(before) if after else None


def places_of(kind: str, tensors: Mapping[str, Stored | Tensor], drawn: Mapping[str, str],
              extra: Collection[str] = ()) -> dict[str, Place]:
    """Where each of a release's tensors is in a run.

    drawn  names of the image tokenizer's -> ours
    extra  names of those that the class lacks
    """
    places = {}
    for name, tensor in tensors.items():
        own = spelled(kind, name)
        inside = None if name in extra or own.startswith(TOKENIZER) else language_name(kind, own)
        if name in drawn:
            part, there = "image_tokenizer", drawn[name]
        else:
            part, there = ("language", inside) if inside else ("other", name)
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


ALL = 1 << 62
"""A limit for one file that holds everything."""
SMALL = 10**8
"""Bytes of everything but weights, and more."""


def bytes_of(size: str) -> int:
    """"5GB" -> 5,000,000,000. Raises ConvertError."""
    try:
        count = int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        count = 0
    if count <= 0:
        raise ConvertError(f"--split is {size!r}; give a size such as 5GB or 500MB")
    return count


def aside(out: Path, source: Path, needed: int) -> AbstractContextManager[Path]:
    """`new_folder` for what is made of `source`. Raises ConvertError where the disk lacks `needed` bytes, too."""
    target, inside = out.resolve(), source.resolve()
    if inside in target.parents or target in inside.parents or target == inside:
        raise ConvertError(f"{out} and its source {source} lie one inside the other; choose another folder")
    disk = next(folder for folder in target.parents if folder.is_dir())
    free, needed = shutil.disk_usage(disk).free, needed + SMALL
    if free < needed:
        raise ConvertError(f"{out} needs {needed / 1e9:,.1f} GB, but {disk} has {free / 1e9:,.1f} GB free; free the "
                           "disk or choose another folder")
    return new_folder(out, ConvertError, "conversion")


def write_stored(folder: Path, tensors: Mapping[str, Stored], limit: int = SPLIT,
                 first: str = WEIGHTS) -> dict[str, Digest]:
    """`write_weights` of what is stored elsewhere: says on stderr how far it is, at most every few seconds."""
    with tqdm(desc=f"convert {first}", total=size_of(tensors), unit="B", unit_scale=True, mininterval=5) as bar:
        return write_weights(folder, tensors, limit, first, bar.update)
