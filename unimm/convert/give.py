"""A run -> a folder that transformers loads without our code: the stock class, its tokenizer with image tokens in it.

What a conversion brought in and nothing trained since goes out as it came, byte for byte. Otherwise every tensor of
the class is looked for in the run (`Place`), the configuration gets the run's vocabulary, and the tokenizer its markers
and codes. What the class has no place for is refused, never dropped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from unimm import system
from unimm.config.model import FreshBackbone
from unimm.config.recipe import Recipe
from unimm.config.trains import Lora
from unimm.convert.bring import MAP, OTHER
from unimm.convert.release import (
    ALL,
    PLACES,
    TOKENIZER,
    UNIFIED,
    ConvertError,
    Place,
    aside,
    bytes_of,
    check,
    class_of,
    open_release,
    places_of,
    write_stored,
)
from unimm.convert.tokenizer import write_tokenizer
from unimm.disk import copy_file, write_file
from unimm.images.base import ImageTokenizer
from unimm.images.released import spellings
from unimm.images.tokenizer import load_tokenizer
from unimm.layout import Layout
from unimm.model.backbone import fresh_backbone
from unimm.model.lora import is_adapter, plain_name
from unimm.recipe import load_recipe, recipe_to_json
from unimm.weights import TYPES, Stored, open_weights, read_json, size_of

Adapters = Literal["merged", "kept"]
Types = Literal["as_is", "float32", "bfloat16", "float16"]
AS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Run:
    """What an export reads. `places`: of every tensor of the release, where there was one; `model` is on meta."""

    folder: Path
    recipe: Recipe
    layout: Layout
    checkpoint: Path
    untouched: bool
    lora: Lora | None
    model: nn.Module
    places: dict[str, Place]
    tokenizer: ImageTokenizer | None

    @property
    def kept(self) -> Path:
        return self.folder / system.BACKBONE_FOLDER


def give(folder: Path, out: Path, adapters: Adapters = "merged", dtype: Types = "as_is", split: str = "5GB") -> None:
    """Write the language model of a run, and what its release's class holds beside it, into the new folder `out`.

    adapters  'merged' into the weights, or 'kept' beside them in `out`/adapter, in peft's format

    Raises ConvertError where a stock class can't hold the run, ConfigError, CheckpointError; `out` then isn't there.
    """
    limit = bytes_of(split)
    run = _opened(folder)
    language, low = _language(run, adapters)
    tensors = _as(_placed(run, language), dtype)
    with aside(out, folder, size_of(tensors) + size_of(low)) as part:
        _write_small(part, run, tensors)
        write_stored(part, tensors, limit)
        if low:
            _write_adapters(part / "adapter", run, low)
        check(open_release(part), class_of(part))


def _opened(folder: Path) -> Run:
    recipe = load_recipe(folder)
    found = system.language_of(recipe, folder)
    untouched = system.stage_of(found) == system.CONVERTED
    lora = None if untouched else recipe.stages[system.stage_of(found)].train.lora
    codes = folder / system.TOKENIZER_FOLDER
    tokenizer = load_tokenizer(codes) if codes.is_dir() else None
    layout = system.layout_of(recipe, system.text_of(recipe, folder))
    kept = folder / system.BACKBONE_FOLDER
    if isinstance(recipe.backbone, FreshBackbone):
        with torch.device("meta"):
            model = fresh_backbone(recipe.backbone, layout.vocab.rows)
    elif (kept / "config.json").is_file():
        model = class_of(kept)
    else:
        raise ConvertError(f"{folder}: the configuration of its backbone is not kept in {system.BACKBONE_FOLDER}/; "
                           f"copy config.json and the tokenizer's files of {recipe.backbone.path} there")
    known = kept / MAP
    places = PLACES.validate_python(read_json(known)) if known.is_file() else _places(model, tokenizer)
    return Run(folder, recipe, layout, found, untouched, lora, model, places, tokenizer)


def _places(model: nn.Module, tokenizer: ImageTokenizer | None) -> dict[str, Place]:
    """Where a run keeps every tensor of a class, for runs whose release was read without a conversion."""
    kind, drawn = model.config.model_type, {}
    if kind in UNIFIED:
        drawn = {TOKENIZER + theirs: ours for ours, theirs in spellings(tokenizer)[-1].items()}
    places = places_of(kind, model.state_dict(), drawn)
    if lost := [name for name, place in places.items() if place.part == "other"]:
        raise ConvertError(f"a {type(model).__name__} has {lost[0]}, which the run left out when it took the language "
                           "model; start it by unimm convert, which keeps it")
    return places


def _strange(run: Run, name: str) -> ConvertError:
    reasons = {"image_input.places": "the learned places of image_in.places: train with places=0",
               "image_output.": "a head of its own for codes", "image_input.": "a way of its own to read images"}
    why = next((reason for start, reason in reasons.items() if name.startswith(start)), "a tensor of its own")
    return ConvertError(f"{run.folder}: {name} is {why}; a stock {type(run.model).__name__} has no place for it, and "
                        "without it the exported model would be another one")


def _language(run: Run, adapters: Adapters) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """The checkpoint's tensors under plain names, adapters merged into them or apart."""
    stored = open_weights(run.checkpoint)
    low = {name: s for name, s in stored.items() if is_adapter(name)}
    plain = {plain_name(name): s for name, s in stored.items() if name not in low}
    if run.lora is None or adapters == "kept":
        return plain, low
    for name in {plain_name(name) for name in low}:
        layer = name.removesuffix(".weight")
        plain[name] = _merged(plain[name], low[f"{layer}.lora_A.default.weight"],
                              low[f"{layer}.lora_B.default.weight"], run.lora.alpha / run.lora.rank)
    return plain, {}


def _merged(base: Stored, a: Stored, b: Stored, scale: float) -> Stored:
    """W + alpha / rank * B A, as peft adds it."""
    return replace(base, read=lambda: base.read() + (b.read() @ a.read()) * scale)


def _placed(run: Run, language: dict[str, Stored]) -> dict[str, Stored]:
    """The release's names, or the class's, with what the run has there."""
    drawn = run.tokenizer.state_dict() if run.tokenizer else {}
    other = open_weights(run.kept / OTHER) if (run.kept / OTHER).is_file() else {}
    found, left = {}, set(language)
    for name, place in run.places.items():
        match place.part:
            case "language" if place.name in language:
                found[name] = language[place.name]
                left.discard(place.name)
            case "image_tokenizer":
                found[name] = _drawn(drawn[place.name], place)
            case "other":
                found[name] = other[name]
    if left:
        raise _strange(run, min(left))
    return found


def _drawn(tensor: Tensor, place: Place) -> Stored:
    """A tensor of our image tokenizer, in the release's shape and type."""
    dtype = TYPES[place.dtype]
    return Stored(dtype, place.shape, lambda: tensor.reshape(place.shape).to(dtype))


def _as(tensors: Mapping[str, Stored], dtype: Types) -> dict[str, Stored]:
    if dtype == "as_is":
        return dict(tensors)
    return {name: replace(s, dtype=AS[dtype], read=lambda s=s: s.read().to(AS[dtype])) if s.dtype.is_floating_point
            else s for name, s in tensors.items()}


def _write_small(part: Path, run: Run, tensors: Mapping[str, Stored]) -> None:
    """Everything but weights."""
    for file in sorted(run.kept.iterdir()) if run.kept.is_dir() else ():
        if file.name not in (MAP, OTHER):
            copy_file(file, part / file.name)
    if not (part / "config.json").is_file():
        run.model.config.architectures = [type(run.model).__name__]
        run.model.config.save_pretrained(part)
    table = next(s for s in tensors.values() if len(s.shape) > 1)
    _set_config(part / "config.json", run, str(table.dtype).removeprefix("torch."))
    if run.untouched:
        return
    vocab, names = run.layout.vocab, run.layout
    if vocab.rows > vocab.text_size:
        write_tokenizer(part, run.layout)
        ids = {"bos_token_id": names.bos, "eos_token_id": names.eos, "pad_token_id": names.pad_id}
        old = read_json(part / "generation_config.json") if (part / "generation_config.json").is_file() else {}
        write_file(part / "generation_config.json", [json.dumps(old | ids, indent=1).encode()])
    _write_recipe(part, run)


def _set_config(path: Path, run: Run, dtype: str) -> None:
    """The vocabulary, its ends and the type in config.json, which stays byte for byte where they are right."""
    config = read_json(path)
    inner = config["text_config"] if run.model.config.model_type in ("emu3", "janus") else config
    layout, was = run.layout, json.dumps(config)
    config |= {name: dtype for name in ("dtype", "torch_dtype") if name in config}
    if not run.untouched:
        config["dtype"] = dtype
    if not run.untouched and layout.vocab.rows > layout.vocab.text_size:
        rows = max(len(run.model.get_input_embeddings().weight), layout.vocab.rows)
        inner |= {"vocab_size": rows, "bos_token_id": layout.bos, "eos_token_id": layout.eos,
                  "pad_token_id": layout.pad_id}
    if json.dumps(config) != was:
        write_file(path, [json.dumps(config, indent=2, sort_keys=True).encode()])


def _write_recipe(part: Path, run: Run) -> None:
    """What brings the folder back into a run: the recipe with every id stated, and the image tokenizer."""
    vocab = run.layout.vocab
    books = tuple(replace(b, start=vocab.ranges[b.name].start) for b in run.recipe.codebooks)
    stated = replace(run.recipe, special_ids=vocab.special, codebooks=books)
    write_file(part / system.RECIPE_FILE, [recipe_to_json(stated).encode()])
    if run.tokenizer is not None:
        (part / system.TOKENIZER_FOLDER).mkdir()
        for file in sorted((run.folder / system.TOKENIZER_FOLDER).iterdir()):
            copy_file(file, part / system.TOKENIZER_FOLDER / file.name)


def _write_adapters(folder: Path, run: Run, low: Mapping[str, Stored]) -> None:
    """peft's own format: `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(out), out / "adapter")`."""
    from peft import LoraConfig

    folder.mkdir()
    there = {place.name: name for name, place in run.places.items()}
    layers = {name: there[plain_name(name)].removesuffix(".weight") for name in low}
    tensors = {f"base_model.model.{layers[name]}.{name.rpartition('.lora_')[2][0].join(('lora_', '.weight'))}": s
               for name, s in low.items()}
    LoraConfig(r=run.lora.rank, lora_alpha=run.lora.alpha, lora_dropout=run.lora.dropout, inference_mode=True,
               target_modules=sorted(set(layers.values())), task_type="CAUSAL_LM").save_pretrained(folder)
    write_stored(folder, tensors, ALL, "adapter_model.safetensors")
