"""Where each tensor of a release goes, by its name; the way back is written down when it comes in (`Place`).

    release                              run
    (a causal LM) NAME                   checkpoint, backbone.NAME
    model.vqmodel.*                      image_tokenizer/, in our names
    model.language_model.*, ...          checkpoint, as below
    what the class does not hold         backbone/other.safetensors, as it is
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import TypeAdapter
from torch import Tensor

from unimm.config.images import Chameleon, Emu3, ImageTokenizer, LlamaGen, Published
from unimm.convert.source import TOKENIZER, ConvertError, spelled
from unimm.weights import DTYPES, Stored

# "": kept, but no part of our model. `unimm.model.vision_input` and `image_output` keep transformers' names.
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
