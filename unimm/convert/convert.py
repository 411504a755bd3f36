"""A published checkpoint -> a run's folder, every tensor as it was; and a run -> a folder for transformers.

    RUN/
      recipe.json                      the recipe, its paths the release's
      backbone/                        the release's small files; tensors.json, the place of every tensor (releases.py);
                                       other.safetensors, what our model has no use for
      vision/                          the configuration of its vision encoder, where it has one
      image_tokenizer/                 the release's own, or that which the recipe names
      converted/step-00000000/         the language model's tensors under our names, in the release's types

`unimm.system` opens such a run like a trained one, and its first language stage starts from these weights.

What goes out is what transformers loads without our code: the stock class, its tokenizer with image tokens in it.
What a conversion brought in and nothing trained since goes out as it came, byte for byte. Otherwise every tensor of
the class is looked for in the run (`Place`), the configuration gets the run's vocabulary, and the tokenizer its markers
and codes. What the class has no place for is refused, never dropped.

Both ways what is written is planned from headers, one file in memory at a time, aside, then renamed.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ByteSize, Field, TypeAdapter, ValidationError
from torch import nn
from tqdm import tqdm

from unimm import system
from unimm.checkpoint.folders import final_of, write_manifest
from unimm.config.model import FreshBackbone, PretrainedBackbone, PretrainedVision, SeparateHead, VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.tokens import PretrainedText
from unimm.convert import releases
from unimm.convert.releases import PLACES, UNIFIED, ConvertError, Place, Release, class_of, open_release
from unimm.convert.tokenizer import write_tokenizer
from unimm.disk import Digest, new_folder, sync_folder, write_file
from unimm.export import copy_files
from unimm.images.base import ImageTokenizer
from unimm.images.released import fill, spellings
from unimm.images.tokenizer import build_tokenizer, first_tokenizer, is_released, load_tokenizer, save_tokenizer
from unimm.model.backbone import fresh_backbone
from unimm.model.lora import is_adapter, plain_name
from unimm.picture_stages import check_codebook
from unimm.published import small_files
from unimm.recipe import load_recipe, recipe_to_json
from unimm.system import BACKBONE_FOLDER, CONVERTED, RECIPE_FILE, TOKENIZER_FOLDER, VISION_FOLDER
from unimm.text import PretrainedTokenizer
from unimm.weights import SPLIT, TYPES, WEIGHTS, Stored, open_weights, read_json, size_of, write_weights

OTHER, MAP = "other.safetensors", "tensors.json"
ALL = 1 << 62
"""A limit for one file that holds everything."""
SMALL = 10**8
"""Bytes of everything but weights, and more."""


def bring(source: str, out: Path, recipe: Recipe | None = None, unpickle: bool = False) -> None:
    """Write the run `out` out of a published checkpoint: the folder or hub id `source`.

    recipe  the system that it becomes; a folder that `unimm convert` wrote brings its own

    Raises ConvertError, ConfigError, TextError, TokenizerError, one line each, before anything is written.
    """
    folder = releases.local_folder(source)
    release = open_release(folder, unpickle)
    model = class_of(folder)
    extra = releases.check(release, model)
    if recipe is None and not (folder / RECIPE_FILE).is_file():
        raise ConvertError(f"{folder}: say with --recipe which system it is or begins, such as --recipe "
                           "recipes/chameleon.py; a language model alone has no images")
    recipe = of_release(recipe or load_recipe(folder), source)
    layout, rows = system.layout_of(recipe, PretrainedTokenizer(str(folder))), len(model.get_input_embeddings().weight)
    if layout.text.size > rows:
        raise ConvertError(f"{folder}: its tokenizer has {layout.text.size:,} ids, its table {rows:,} rows: the "
                           "tokenizer is another model's; put its own into the folder")
    if release.kind in UNIFIED and layout.vocab.rows > rows:
        raise ConvertError(f"{folder}: the recipe's ids end at {layout.vocab.rows - 1:,}, the table has {rows:,} rows: "
                           "the recipe is of a release with another vocabulary")
    tokenizer, drawn, recipe = image_tokenizer(release, model, recipe)
    places = releases.places_of(release.kind, release.tensors, drawn, extra)
    with aside(out, folder, size_of(release.tensors)) as part:
        _write(part, release, recipe, places)
        if tokenizer is not None:
            save_tokenizer(tokenizer, part / TOKENIZER_FOLDER)
        if isinstance(recipe.image_in, VisionFeatures) and release.kind == "janus":
            model.config.vision_config.save_pretrained(part / VISION_FOLDER)


def of_release(recipe: Recipe, source: str) -> Recipe:
    """The recipe with every part that a release can fill taken from this one."""
    image_in, image_out = recipe.image_in, recipe.image_out
    if isinstance(image_in, VisionFeatures):
        image_in = replace(image_in, encoder=PretrainedVision(path=source), weights=source)
    if isinstance(image_out, SeparateHead):
        image_out = replace(image_out, weights=source)
    text = recipe.text if isinstance(recipe.text, PretrainedText) else PretrainedText(path=source)
    known = recipe.backbone if isinstance(recipe.backbone, PretrainedBackbone) else PretrainedBackbone(path=source)
    return replace(recipe, image_in=image_in, image_out=image_out, text=replace(text, path=source),
                   backbone=replace(known, path=source))


def image_tokenizer(release: Release, model: nn.Module,
                    recipe: Recipe) -> tuple[ImageTokenizer | None, dict[str, str], Recipe]:
    """The image tokenizer, filled, if there is one yet; the release's names of its tensors -> ours; the recipe with
    that tokenizer in it."""
    kind, wanted, filled = release.kind, recipe.image_tokenizer, {}
    if (release.folder / TOKENIZER_FOLDER).is_dir():  # an exported run's
        tokenizer = load_tokenizer(release.folder / TOKENIZER_FOLDER)
    elif is_released(wanted):
        tokenizer = first_tokenizer(wanted)
    elif kind in UNIFIED:
        recipe = replace(recipe, image_tokenizer=releases.tokenizer_of(kind, wanted, model.config.vq_config))
        tokenizer = build_tokenizer(recipe.image_tokenizer).eval()
        filled = fill(tokenizer, release.tensors, release.folder)
    else:
        return None, {}, recipe
    check_codebook(recipe, tokenizer)
    return tokenizer, {theirs: ours for ours, theirs in filled.items()}, recipe


def _write(part: Path, release: Release, recipe: Recipe, places: dict[str, Place]) -> None:
    language, other = ({place.name: release.tensors[name] for name, place in places.items() if place.part == kind}
                       for kind in ("language", "other"))
    text = recipe_to_json(recipe).encode()
    write_file(part / RECIPE_FILE, [text])
    kept = part / BACKBONE_FOLDER
    copy_files([file for file in small_files(release.folder) if file.name != RECIPE_FILE], release.folder, kept)
    write_file(kept / MAP, [PLACES.dump_json(places, indent=1)])
    if other:
        write_stored(kept, other, ALL, OTHER)
    step = final_of(part / CONVERTED, 0)
    step.mkdir(parents=True)
    state = {"stage": CONVERTED, "step": 0, "world": 1, "zero": 0, "release": str(release.folder.resolve().name),
             "written": datetime.now(UTC).isoformat(timespec="seconds")}
    files = write_stored(step, language)
    files["state.json"] = write_file(step / "state.json", [json.dumps(state, indent=1).encode()])
    files["recipe.json"] = write_file(step / "recipe.json", [text])
    write_manifest(step, files)
    for folder in (step, step.parent, kept, part):
        sync_folder(folder)


class Run:
    """What an export reads of a run's folder. `kept`: its backbone's small files; `model`: the class, on meta;
    `places`: of every tensor of the class, or of the release; `untouched`: nothing was trained since a conversion.

    Raises ConvertError, ConfigError, CheckpointError.
    """

    def __init__(self, folder: Path):
        self.folder, self.kept, self.recipe = folder, folder / BACKBONE_FOLDER, load_recipe(folder)
        self.checkpoint = system.language_of(self.recipe, folder)
        self.untouched = system.stage_of(self.checkpoint) == CONVERTED
        self.lora = None if self.untouched else self.recipe.stages[system.stage_of(self.checkpoint)].train.lora
        codes = folder / TOKENIZER_FOLDER
        self.tokenizer = load_tokenizer(codes) if codes.is_dir() else None
        self.layout = system.layout_of(self.recipe, system.text_of(self.recipe, folder))
        if isinstance(self.recipe.backbone, FreshBackbone):
            with torch.device("meta"):
                self.model = fresh_backbone(self.recipe.backbone, self.layout.vocab.rows)
        elif (self.kept / "config.json").is_file():
            self.model = class_of(self.kept)
        else:
            raise ConvertError(f"{folder}: the configuration of its backbone is not kept in {BACKBONE_FOLDER}/; "
                               f"copy config.json and the tokenizer's files of {self.recipe.backbone.path} there")
        known = self.kept / MAP
        self.places = PLACES.validate_python(read_json(known)) if known.is_file() else self._places()

    def _places(self) -> dict[str, Place]:
        """Where a run keeps every tensor of a class, for runs whose release was read without a conversion."""
        kind, drawn = self.model.config.model_type, {}
        if kind in UNIFIED:
            drawn = {releases.TOKENIZER + theirs: ours for ours, theirs in spellings(self.tokenizer)[-1].items()}
        places = releases.places_of(kind, self.model.state_dict(), drawn)
        if lost := [name for name, place in places.items() if place.part == "other"]:
            raise ConvertError(f"a {type(self.model).__name__} has {lost[0]}, which the run left out when it took the "
                               "language model; start it by unimm convert, which keeps it")
        return places


def give(folder: Path, out: Path, adapters: Literal["merged", "kept"] = "merged",
         dtype: Literal["as_is", "float32", "bfloat16", "float16"] = "as_is", split: str = "5GB") -> None:
    """Write the language model of a run, and what its release's class holds beside it, into the new folder `out`.

    adapters  'merged' into the weights, or 'kept' beside them in `out`/adapter, in peft's format

    Raises ConvertError where a stock class can't hold the run, ConfigError, CheckpointError; `out` then isn't there.
    """
    try:
        limit = TypeAdapter(Annotated[ByteSize, Field(gt=0)]).validate_python(split)
    except ValidationError:
        raise ConvertError(f"--split is {split!r}; give a size such as 5GB or 500MB") from None
    run = Run(folder)
    language, low = _language(run, adapters)
    tensors = _placed(run, language)
    if dtype != "as_is":
        tensors = {name: _cast(s, getattr(torch, dtype)) if s.dtype.is_floating_point else s
                   for name, s in tensors.items()}
    with aside(out, folder, size_of(tensors) + size_of(low)) as part:
        _write_small(part, run, tensors)
        write_stored(part, tensors, limit)
        if low:
            _write_adapters(part / "adapter", run, low)
        releases.check(open_release(part), class_of(part))


def _language(run: Run, adapters: str) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """The checkpoint's tensors under plain names, adapters merged into them or apart."""
    stored = open_weights(run.checkpoint)
    low = {name: s for name, s in stored.items() if is_adapter(name)}
    plain = {plain_name(name): s for name, s in stored.items() if name not in low}
    if adapters == "kept":
        return plain, low
    for name in {plain_name(name) for name in low}:
        layer = name.removesuffix(".weight")
        a, b = (low[f"{layer}.lora_{which}.default.weight"] for which in "AB")
        plain[name] = _merged(plain[name], a, b, run.lora.alpha / run.lora.rank)
    return plain, {}


def _merged(base: Stored, a: Stored, b: Stored, scale: float) -> Stored:
    """W + alpha / rank * B A, as peft adds it."""
    return replace(base, read=lambda: base.read() + (b.read() @ a.read()) * scale)


def _cast(stored: Stored, dtype: torch.dtype) -> Stored:
    return replace(stored, dtype=dtype, read=lambda: stored.read().to(dtype))


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
                tensor = drawn[place.name].reshape(place.shape)
                found[name] = _cast(Stored(tensor.dtype, place.shape, tensor.clone), TYPES[place.dtype])
            case "other":
                found[name] = other[name]
    if left:
        reasons = {"image_input.places": "the learned places of image_in.places: train with places=0",
                   "image_output.": "a head of its own for codes", "image_input.": "a way of its own to read images"}
        why = next((why for start, why in reasons.items() if min(left).startswith(start)), "a tensor of its own")
        raise ConvertError(f"{run.folder}: {min(left)} is {why}; a stock {type(run.model).__name__} has no place for "
                           "it, and without it the exported model would be another one")
    return found


def _write_small(part: Path, run: Run, tensors: Mapping[str, Stored]) -> None:
    """Everything but weights. config.json stays byte for byte where its vocabulary, its ends and its type are right."""
    copy_files([file for file in run.kept.glob("*") if file.name not in (MAP, OTHER)], run.kept, part)
    path, layout, vocab = part / "config.json", run.layout, run.layout.vocab
    if not path.is_file():
        run.model.config.architectures = [type(run.model).__name__]
        run.model.config.save_pretrained(part)
    config = read_json(path)
    inner = config["text_config"] if run.model.config.model_type in ("emu3", "janus") else config
    was, dtype = json.dumps(config), str(next(s for s in tensors.values() if len(s.shape) > 1).dtype)
    if not run.untouched:
        config.setdefault("dtype")
    config |= {name: dtype.removeprefix("torch.") for name in ("dtype", "torch_dtype") if name in config}
    if not run.untouched and vocab.rows > vocab.text_size:
        write_tokenizer(part, layout)
        ids = {"bos_token_id": layout.bos, "eos_token_id": layout.eos, "pad_token_id": layout.pad_id}
        inner |= {"vocab_size": max(len(run.model.get_input_embeddings().weight), vocab.rows)} | ids
        generation = part / "generation_config.json"
        old = read_json(generation) if generation.is_file() else {}
        write_file(generation, [json.dumps(old | ids, indent=1).encode()])
    if json.dumps(config) != was:
        write_file(path, [json.dumps(config, indent=2, sort_keys=True).encode()])
    if not run.untouched:  # what brings the folder back into a run: every id stated, and the image tokenizer
        books = tuple(replace(b, start=vocab.ranges[b.name].start) for b in run.recipe.codebooks)
        stated = replace(run.recipe, special_ids=vocab.special, codebooks=books)
        write_file(part / RECIPE_FILE, [recipe_to_json(stated).encode()])
        copy_files((run.folder / TOKENIZER_FOLDER).rglob("*"), run.folder, part)


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
