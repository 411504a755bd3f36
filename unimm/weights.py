"""Published weights on disk: what each tensor is, by headers alone, and how to read it. Nothing in a file is executed.

    file or folder --open_weights--> {name: Stored}

Read are safetensors; pickles only on request, and then by torch's reader of tensors alone.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unimm.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WRAPPERS = ("state_dict", "model")
"""Where a pickle of a training run keeps its weights: taming-transformers' and LlamaGen's way."""

# https://huggingface.co/docs/safetensors: the format's names of types.
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL",
          torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
          torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64"}
TYPES = {name: dtype for dtype, name in DTYPES.items()}


class StoredError(UserError):
    """Weights that can't be read: missing, damaged or refused; the message names the file and the remedy."""


@dataclass(frozen=True)
class Stored:
    """One tensor on disk: what its header says, and how to read it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def open_weights(path: Path, unpickle: bool = False) -> dict[str, Stored]:
    """The tensors of a file, or of a folder with one file or with shards and their index.

    Raises StoredError, one line naming the file and the remedy.
    """
    if not path.exists():
        raise StoredError(f"{path}: no such file or folder; weights are given as a local path")
    files = _files_of(path) if path.is_dir() else {"": path}
    tensors: dict[str, Stored] = {}
    for file in dict.fromkeys(files.values()):
        tensors |= _pickle(file, unpickle) if file.suffix in PICKLES else _safetensors(file)
    lost = [name for name in files if name and name not in tensors]
    if lost:
        raise StoredError(f"{path}: {files[lost[0]].name} lacks {lost[0]}, which the index promises; "
                          "download both again")
    return tensors


def _files_of(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, by the index; "" -> file where there is only one. Safetensors go before pickles."""
    for index, kinds in ((INDEX, (".safetensors",)), ("pytorch_model.bin.index.json", PICKLES)):
        if (folder / index).is_file():
            return _indexed(folder / index)
        files = sorted(file for file in folder.iterdir() if file.suffix in kinds)
        files = [file for file in files if file.name == WEIGHTS] or files
        if len(files) > 1:
            raise StoredError(f"{folder}: {len(files)} files of weights and no {index}; leave the one that holds the "
                              "model, or name it")
        if files:
            return {"": files[0]}
    raise StoredError(f"{folder}: no weights ({WEIGHTS} or {INDEX}); download them")


def _indexed(index: Path) -> dict[str, Path]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise StoredError(f"{index} is damaged: it has no weight_map; download it again")
    for file in dict.fromkeys(found.values()):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise StoredError(f"{index.parent}: the shard {file} is missing; download it")
    return {name: index.parent / file for name, file in found.items()}


def read_json(path: Path) -> dict:
    """Raises StoredError."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoredError(f"{path.parent}: no {path.name}; give a folder that transformers' save_pretrained wrote") \
            from None
    except ValueError:
        raise StoredError(f"{path} is damaged: it is no JSON; download it again") from None
    if not isinstance(found, dict):
        raise StoredError(f"{path} is damaged: it holds no object; download it again")
    return found


def _safetensors(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file. Raises StoredError."""
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="pt")
        heads = {name: opened.get_slice(name) for name in opened.keys()}
        return {name: Stored(TYPES[head.get_dtype()], tuple(head.get_shape()),
                             lambda name=name: opened.get_tensor(name)) for name, head in heads.items()}
    except (SafetensorError, OSError) as error:
        raise StoredError(f"{file} is damaged or cut short ({error}); copy or download it again") from None
    except KeyError as error:
        raise StoredError(f"{file}: torch has no type {error}; convert it to bfloat16 first") from None


def _pickle(file: Path, unpickle: bool) -> dict[str, Stored]:
    """The tensors of a pickle, by torch's reader of tensors alone. Raises StoredError, with nothing executed."""
    if not unpickle:
        raise StoredError(f"{file}: a pickle, which can run code when it is read; get the safetensors, or have its "
                          "tensors alone read by --unpickle, for image_tokenizer.weights by image_tokenizer.unpickle")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise StoredError(f"{file}: holds more than tensors and was refused; nothing in it was run. Where you trust "
                          "it, save its tensors as .safetensors on a machine that holds nothing else") from None
    # torch's reader meets damage with these, by where the file is cut.
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as why:
        raise StoredError(f"{file}: damaged or cut short ({' '.join(str(why).split())[:100]}); "
                          "download it again") from None
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: Stored(t.dtype, tuple(t.shape), lambda t=t: t) for name, t in pairs
            if isinstance(name, str) and isinstance(t, Tensor)}
