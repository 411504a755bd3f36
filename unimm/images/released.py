"""A release's weights into one of our tokenizers: by the release's own names, strictly, and running nothing.

    file or folder --_Source--> names and tensors --one prefix, one spelling--> our names

The tensors may lie inside a larger checkpoint, such as `model.vqmodel.` in transformers' or `gen_vision_model.`
in Janus's: the prefix is what stands before `encoder.conv_in.weight`. Beyond it every name must be one that
the architecture has or knows as a leftover of training, every tensor of ours must be there, in its shape.
Read are safetensors; pickles only on request, and then by torch's reader of tensors alone.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from unimm.errors import UserError
from unimm.images.base import TokenizerError
from unimm.images.vqgan import VQGAN

ANCHOR = "encoder.conv_in.weight"
INDEX = "model.safetensors.index.json"
WRAPPERS = ("state_dict", "model")
"""Where a pickle of a training run keeps its weights: taming-transformers' and LlamaGen's way."""

Source = dict[str, Callable[[], Tensor]]
"""A checkpoint's names, and how to read each tensor."""


def load_released(tokenizer: VQGAN, path: Path, unpickle: bool = False) -> None:
    """Fill `tokenizer`, which may be on the meta device, with float32 tensors.

    Raises TokenizerError, one line, for a path without weights, a damaged or incomplete checkpoint, a pickle
    without `unpickle` or with more than tensors in it, and names or shapes that are not this architecture's.
    """
    fill(tokenizer, _source(path, unpickle), path)


def fill(tokenizer: VQGAN, source: Source, path: Path) -> dict[str, str]:
    """Fill `tokenizer` from an open checkpoint, whose `path` is for messages; our names -> the checkpoint's."""
    prefixes = sorted(name.removesuffix(ANCHOR) for name in source if name.endswith(ANCHOR))
    if len(prefixes) != 1:
        found = f"several ({', '.join(map(repr, prefixes))})" if prefixes else "none"
        raise TokenizerError(f"{path}: a {tokenizer.config.kind} tokenizer has one tensor named ...{ANCHOR}, here are "
                             f"{found}; give the release's own file")
    theirs = {name.removeprefix(prefixes[0]): read for name, read in source.items() if name.startswith(prefixes[0])}
    ours = tokenizer.state_dict()
    spelled = _spelled(tokenizer, path, ours, theirs)
    filled = {}
    for name, tensor in ours.items():
        found = theirs[spelled[name]]()
        if found.shape + (1, 1) == tensor.shape:  # a linear layer in place of a convolution of one pixel
            found = found[..., None, None]
        if found.shape != tensor.shape:
            raise TokenizerError(f"{path}: {prefixes[0]}{spelled[name]} is {tuple(found.shape)}, a "
                                 f"{tokenizer.config.kind} tokenizer of these sizes has {tuple(tensor.shape)}; "
                                 "state the release's sizes in the recipe")
        filled[name] = found.to(tensor.dtype, copy=True).contiguous()
    tokenizer.load_state_dict(filled, assign=True)
    return {name: prefixes[0] + spelling for name, spelling in spelled.items()}


def _spelled(tokenizer: VQGAN, path: Path, ours: dict, theirs: dict) -> dict[str, str]:
    """Our names -> the release's. Refuses a file where a name is missing, or is not the architecture's."""
    all_ways = [{name: spell(name) for name in ours} for spell in tokenizer.spellings()]
    spelled = max(all_ways, key=lambda names: len(theirs.keys() & set(names.values())))
    missing = [name for name in spelled.values() if name not in theirs]
    if missing:
        hint = ("; decoder=False loads it to encode only"
                if all(name.startswith("decoder.") for name in missing) else "; give the release's whole file")
        raise TokenizerError(f"{path}: lacks {len(missing)} of {len(ours)} tensors of a {tokenizer.config.kind} "
                             f"tokenizer, the first {missing[0]}{hint}")
    left_out = tokenizer.LEFT_OUT + (("decoder.",) if tokenizer.decoder is None else ())
    known = {name for names in all_ways for name in names.values()}
    extra = sorted(name for name in theirs if name not in known and not name.startswith(left_out))
    if extra:
        raise TokenizerError(f"{path}: holds {len(extra)} tensors that a {tokenizer.config.kind} tokenizer of these "
                             f"sizes does not have, the first {extra[0]}; state the release's sizes in the recipe")
    return spelled


def _source(path: Path, unpickle: bool) -> Source:
    if path.is_dir():
        index, single = path / INDEX, sorted(path.glob("*.safetensors"))
        if index.is_file():
            return _shards(index)
        if len(single) != 1:
            raise TokenizerError(f"{path}: {len(single)} .safetensors files and no {INDEX}; name the file with the "
                                 "tokenizer's weights")
        path = single[0]
    if not path.is_file():
        raise TokenizerError(f"{path}: no such file or folder; weights are given as a local path")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickle(path, unpickle)


def _safetensors(path: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
        return {name: lambda name=name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise TokenizerError(f"{path}: damaged or cut short ({error}); download it again") from None


def _shards(index: Path) -> Source:
    try:
        files = json.loads(index.read_text())["weight_map"]
        shards = {name: index.parent / name for name in set(files.values())}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TokenizerError(f"{index}: not an index of shards; download it again") from None
    for name, path in shards.items():
        if path.resolve().parent != index.parent.resolve() or not path.is_file():
            raise TokenizerError(f"{index}: names the shard {name}, which is not beside it; download it")
    opened = {name: _safetensors(path) for name, path in shards.items()}
    lost = [name for name, shard in files.items() if name not in opened[shard]]
    if lost:
        raise TokenizerError(f"{index}: {files[lost[0]]} lacks {lost[0]}; download both again")
    return {name: opened[shard][name] for name, shard in files.items()}


def _pickle(path: Path, unpickle: bool) -> Source:
    if not unpickle:
        raise TokenizerError(f"{path}: a pickle, which can run code when it is read; give a .safetensors file, or set "
                             "image_tokenizer.unpickle to read its tensors alone")
    return {name: lambda t=t: t for name, t in unpickled(path, TokenizerError).items()}


def unpickled(path: Path, error: type[UserError]) -> dict[str, Tensor]:
    """The tensors of a pickle, by torch's reader of tensors alone. Raises `error`, with nothing executed."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise error(f"{path}: holds more than tensors and was refused; nothing in it was run. Where you trust "
                    "it, save its tensors as .safetensors on a machine that holds nothing else") from None
    # torch's reader meets damage with these, by where the file is cut.
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as why:
        raise error(f"{path}: damaged or cut short ({' '.join(str(why).split())[:100]}); "
                    "download it again") from None
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: t for name, t in pairs if isinstance(name, str) and isinstance(t, Tensor)}
