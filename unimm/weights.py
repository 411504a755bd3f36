"""Weights on disk: what each tensor is, by headers alone, and how to read it; and how they are written.

    file or folder --open_weights--> {name: Stored} --write_weights--> folder

Read are safetensors; pickles only on request, and then by torch's reader of tensors alone. Nothing in a file is
executed. Written are safetensors, hashed while they are written, large sets split with transformers' index.

A trained part of a run, kept in a folder: an image tokenizer, or what draws pictures in its place.

    module --keep--> config.json, model.safetensors --fetch--> same

Weights are in our names; config.json holds the module's `config` and the fingerprint of both, since a flipped bit in
safetensors loads as a wrong value without a word.
"""

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import _TYPES as TYPES  # the format's names of types -> torch's
from torch import Tensor, nn

from unimm.disk import Digest, replace_file, write_file
from unimm.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SPLIT = 5_000_000_000  # bytes of weights in one file, as transformers wrote them for years
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = {dtype: name for name, dtype in TYPES.items()}


class StoredError(UserError):
    """Weights that can't be read or written: missing, damaged or refused; the message names the file and the remedy."""


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
            found = read_json(folder / index).get("weight_map")
            if not found or not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
                raise StoredError(f"{folder / index} is damaged: it has no weight_map; download it again")
            for file in dict.fromkeys(found.values()):
                if Path(file).name != file or not (folder / file).is_file():
                    raise StoredError(f"{folder}: the shard {file} is missing; download it")
            return {name: folder / file for name, file in found.items()}
        files = sorted(file for file in folder.iterdir() if file.suffix in kinds)
        files = [file for file in files if file.name == WEIGHTS] or files
        if len(files) > 1:
            raise StoredError(f"{folder}: {len(files)} files of weights and no {index}; leave the one that holds the "
                              "model, or name it")
        if files:
            return {"": files[0]}
    raise StoredError(f"{folder}: no weights ({WEIGHTS} or {INDEX}); download them")


def read_json(path: Path) -> dict:
    """Raises StoredError."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoredError(f"{path.parent}: no {path.name}; give a folder that transformers' save_pretrained wrote") \
            from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoredError(f"{path} is damaged: it is no JSON object; download it again")
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
    for wrapper in ("state_dict", "model"):  # where taming-transformers' and LlamaGen's training runs keep weights
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: Stored(t.dtype, tuple(t.shape), lambda t=t: t) for name, t in pairs
            if isinstance(name, str) and isinstance(t, Tensor)}


def size_of(tensors: Mapping[str, Tensor | Stored]) -> int:
    """Bytes that they take on disk, but for a few of header."""
    return sum(t.nbytes for t in tensors.values())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Digest:
    """Write one safetensors file and sync it. Raises OSError; StoredError for a type that has no name there.

    Not `safetensors.torch.save_file`: that leaves nothing to hash but the file, read again from the disk.
    """
    return write_file(path, _encoded(tensors))


def write_weights(folder: Path, tensors: Mapping[str, Tensor | Stored], limit: int = SPLIT, first: str = WEIGHTS,
                  told: Callable[[int], object] = lambda size: None) -> dict[str, Digest]:
    """Write a model's weights as one file, `first`, or as several of at most `limit` bytes with an index.

    A larger tensor has a file of its own. What is stored elsewhere is read a file at a time; `told` hears the bytes of
    each that was written.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    cut = split_state_dict_into_shards_factory(
        tensors, get_storage_size=lambda t: t.nbytes, max_shard_size=limit,
        filename_pattern=first.removesuffix(".safetensors") + "{suffix}.safetensors")
    digests = {}
    for file, names in cut.filename_to_tensors.items():
        these = {name: tensors[name] for name in names}
        digests[file] = write_tensors(folder / file, {name: t.read() if isinstance(t, Stored) else t
                                                      for name, t in these.items()})
        told(size_of(these))
    if cut.is_sharded:
        index = {"metadata": cut.metadata, "weight_map": cut.tensor_to_filename}
        digests[INDEX] = write_file(folder / INDEX, [json.dumps(index, indent=1).encode()])
    return digests


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without the names whose very tensor an earlier name already has (tied weights)."""
    seen, kept = set(), {}
    for name, t in state.items():
        place = (t.data_ptr(), t.dtype, t.shape, t.stride())
        if not t.numel() or place not in seen:
            kept[name] = t
        seen.add(place)
    return kept


def _encoded(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece: length of the header, header, tensors with the widest types first."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in ordered:
        if t.dtype not in DTYPES:
            raise StoredError(f"can't save {name}: safetensors has no name for {t.dtype}")
        end = at + t.nbytes
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor lies at a multiple of its own width
    yield len(text).to_bytes(8, "little") + text
    for _, t in ordered:
        yield memoryview(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


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
    from pydantic import Field, TypeAdapter

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise StoredError(f"{folder} is not {what}: it has no {name}; train it, or copy it whole")
    try:
        about = json.loads((folder / CONFIG).read_text())
        adapter = TypeAdapter(Annotated[kinds, Field(discriminator="kind")])
        made, saved = adapter.validate_python(about["config"], extra="forbid"), about["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise StoredError(f"{folder / CONFIG} does not describe {what}: {why}; copy it again") from None
    weights = {name: stored.read() for name, stored in open_weights(folder / WEIGHTS).items()}
    if _fingerprint(made, weights) != saved:
        raise StoredError(f"{folder} differs from what was saved: its fingerprint isn't that in {CONFIG}; copy the "
                          "folder again or train again")
    module = build(made)
    module.load_state_dict(weights)
    return module.eval()
