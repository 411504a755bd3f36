"""A release's weights into one of our tokenizers: by the release's own names, strictly, and running nothing.

    file or folder --open_weights--> names and tensors --one prefix, one spelling--> our names

The tensors may lie inside a larger checkpoint, such as `model.vqmodel.` in transformers' or `gen_vision_model.`
in Janus's: the prefix is what stands before `encoder.conv_in.weight`. Beyond it every name must be one that
the architecture has or knows as a leftover of training, every tensor of ours must be there, in its shape.
"""

import re
from pathlib import Path

from unimm.config.images import IBQ, Emu3, LlamaGen
from unimm.images.base import ImageTokenizer, TokenizerError
from unimm.weights import Stored

ANCHOR = "encoder.conv_in.weight"
LEFT_OUT = ("loss.", "ema_", "model_ema.", "quantize.codebook_used")
"""Beginnings of names that a release's file may hold beside the tokenizer: what only its training needed."""
TAMING = {"down_blocks.": "down.", "mid_block.attentions.0": "mid.attn_1", "mid_block.resnets.0": "mid.block_1",
          "mid_block.resnets.1": "mid.block_2", ".resnets.": ".block.", ".attentions.": ".attn.",
          "downsamplers.0": "downsample", "upsamplers.0": "upsample", "conv_shortcut": "nin_shortcut",
          "conv_norm_out": "norm_out", "group_norm": "norm", "spatial_norm": "norm", "to_out.0": "proj_out",
          ".to_": "."}
"""diffusers' names -> those of CompVis/taming-transformers, taming/modules/diffusionmodules/model.py, to which all keep
more or less."""


def spellings(tokenizer: ImageTokenizer) -> list[dict[str, str]]:
    """Our names -> a release's, in each way that is written, the preferred one first.

    Chameleon, MoVQ   facebookresearch/chameleon, chameleon/inference/vqgan.py, and ai-forever/MoVQGAN keep taming's;
                      MoVQ's moving averages (`ema_...`) are passed over, as its own inference does
    LlamaGen          LlamaGen's and Janus's vq_model.py; transformers' (models/janus/convert_janus_weights_to_hf.py)
                      are taming's with the decoder's levels in the order in which they run
    IBQ               src/IBQ/models/ibqgan.py: where there are moving averages (`model_ema.`), they are what is loaded,
                      since its own evaluation runs on them
    Emu3              taming's; transformers' Emu3VQVAE has others
    """
    names, levels = tokenizer.state_dict(), len(tokenizer.config.multipliers)
    counted = [re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name) for name in names]
    taming = [_taming(name) for name in counted]
    match tokenizer.config:
        case LlamaGen():
            as_run = [_taming(name.replace("up_blocks.", "up.")) for name in names]
            ways = [[_llamagen(name) for name in as_run], as_run]
        case IBQ():
            ways = [["model_ema." + name.replace(".", "") for name in taming], taming]
        case Emu3():
            ways = [taming, [_emu3(name) for name in taming]]
        case _:
            ways = [taming]
    return [dict(zip(names, way)) for way in ways]


def _taming(name: str) -> str:
    for ours, theirs in TAMING.items():
        name = name.replace(ours, theirs)
    return name


def _llamagen(name: str) -> str:
    name = re.sub(r"\.(down|up)\.(\d+)\.(block)?", lambda m: f".conv_blocks.{m[2]}." + ("res" if m[3] else ""), name)
    return name.replace("mid.block_1", "mid.0").replace("mid.attn_1", "mid.1").replace("mid.block_2", "mid.2")


def _emu3(name: str) -> str:
    name = name.replace("encoder.down.", "encoder.down_block.down.").replace("decoder.up.", "decoder.up_block.up.")
    name = re.sub(r"attn\.(\d+)\.norm\.", r"attn_norms.\1.", name)
    name = name.replace(".mid.attn_1.norm.", ".middle_block.attn_norm.").replace(".mid.", ".middle_block.")
    return re.sub(r"(attn(?:_1|\.\d+))\.(q|k|v|proj_out)\.",
                  lambda m: f"{m[1]}.{m[2].removeprefix('proj_')}_proj.", name)


def fill(tokenizer: ImageTokenizer, source: dict[str, Stored], path: Path) -> dict[str, str]:
    """Fill `tokenizer`, which may be on the meta device, with float32 tensors of an open checkpoint, whose `path` is
    for messages; our names -> the checkpoint's.

    Raises TokenizerError, one line, for names or shapes that are not this architecture's.
    """
    kind, ours = tokenizer.config.kind, tokenizer.state_dict()
    prefixes = sorted(name.removesuffix(ANCHOR) for name in source if name.endswith(ANCHOR))
    if len(prefixes) != 1:
        found = f"several ({', '.join(map(repr, prefixes))})" if prefixes else "none"
        raise TokenizerError(f"{path}: a {kind} tokenizer has one tensor named ...{ANCHOR}, here are {found}; give the "
                             "release's own file")
    theirs = {name.removeprefix(prefixes[0]): t for name, t in source.items() if name.startswith(prefixes[0])}
    all_ways = [*spellings(tokenizer), {name: name for name in ours}]  # the last: one that was trained here
    spelled = max(all_ways, key=lambda names: len(theirs.keys() & set(names.values())))
    missing = [name for name in spelled.values() if name not in theirs]
    if missing:
        hint = ("; decoder=False loads it to encode only"
                if all(name.startswith("decoder.") for name in missing) else "; give the release's whole file")
        raise TokenizerError(f"{path}: lacks {len(missing)} of {len(ours)} tensors of a {kind} tokenizer, the first "
                             f"{missing[0]}{hint}")
    left_out = LEFT_OUT + (("decoder.",) if tokenizer.decoder is None else ())
    known = {name for names in all_ways for name in names.values()}
    extra = sorted(name for name in theirs if name not in known and not name.startswith(left_out))
    if extra:
        raise TokenizerError(f"{path}: holds {len(extra)} tensors that a {kind} tokenizer of these sizes lacks, "
                             f"the first {extra[0]}; state the release's sizes in the recipe")
    filled = {}
    for name, tensor in ours.items():
        found = theirs[spelled[name]].read()
        if found.shape == tensor.shape + (1, 1):  # a convolution of one pixel in place of a linear layer
            found = found[..., 0, 0]
        if found.shape != tensor.shape:
            raise TokenizerError(f"{path}: {prefixes[0]}{spelled[name]} is {tuple(found.shape)}, a {kind} tokenizer of "
                                 f"these sizes has {tuple(tensor.shape)}; state the release's sizes in the recipe")
        filled[name] = found.to(tensor.dtype, copy=True).contiguous()
    tokenizer.load_state_dict(filled, assign=True)
    return {name: prefixes[0] + spelling for name, spelling in spelled.items()}
