"""A release's weights into one of our tokenizers: by the release's own names, strictly, and running nothing.

    file or folder --open_weights--> names and tensors --one prefix, one spelling--> our names

The tensors may lie inside a larger checkpoint, such as `model.vqmodel.` in transformers' or `gen_vision_model.`
in Janus's: the prefix is what stands before `encoder.conv_in.weight`. Beyond it every name must be one that
the architecture has or knows as a leftover of training, every tensor of ours must be there, in its shape.
"""

from pathlib import Path

from unimm.images.base import TokenizerError
from unimm.images.vqgan import VQGAN
from unimm.weights import Stored

ANCHOR = "encoder.conv_in.weight"


def fill(tokenizer: VQGAN, source: dict[str, Stored], path: Path) -> dict[str, str]:
    """Fill `tokenizer`, which may be on the meta device, with float32 tensors of an open checkpoint, whose `path` is
    for messages; our names -> the checkpoint's.

    Raises TokenizerError, one line, for names or shapes that are not this architecture's.
    """
    prefixes = sorted(name.removesuffix(ANCHOR) for name in source if name.endswith(ANCHOR))
    if len(prefixes) != 1:
        found = f"several ({', '.join(map(repr, prefixes))})" if prefixes else "none"
        raise TokenizerError(f"{path}: a {tokenizer.config.kind} tokenizer has one tensor named ...{ANCHOR}, here are "
                             f"{found}; give the release's own file")
    theirs = {name.removeprefix(prefixes[0]): t for name, t in source.items() if name.startswith(prefixes[0])}
    ours = tokenizer.state_dict()
    spelled = _spelled(tokenizer, path, ours, theirs)
    filled = {}
    for name, tensor in ours.items():
        found = theirs[spelled[name]].read()
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
