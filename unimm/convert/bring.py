"""A published checkpoint -> a run's folder, every tensor as it was.

    RUN/
      recipe.json                      the recipe, its paths the release's
      backbone/                        the release's small files; tensors.json, the place of every tensor (names.py);
                                       other.safetensors, what our model has no use for
      vision/                          the configuration of its vision encoder, where it has one
      image_tokenizer/                 the release's own, or that which the recipe names
      converted/step-00000000/         the language model's tensors under our names, in the release's types

`unimm.system` opens such a run like a trained one, and its first language stage starts from these weights.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from unimm.checkpoint.folders import final_of, write_manifest
from unimm.config.model import PretrainedBackbone, PretrainedVision, SeparateHead, VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.tokens import PretrainedText
from unimm.convert.release import (
    ALL,
    PLACES,
    UNIFIED,
    ConvertError,
    Place,
    Release,
    aside,
    check,
    class_of,
    local_folder,
    open_release,
    places_of,
    tokenizer_of,
    write_stored,
)
from unimm.disk import copy_file, sync_folder, write_file
from unimm.images.base import ImageTokenizer
from unimm.images.released import fill
from unimm.images.tokenizer import build_tokenizer, first_tokenizer, is_released, load_tokenizer, save_tokenizer
from unimm.layout import Layout
from unimm.picture_stages import check_codebook
from unimm.published import small_files
from unimm.recipe import load_recipe, recipe_to_json
from unimm.system import BACKBONE_FOLDER, CONVERTED, RECIPE_FILE, TOKENIZER_FOLDER, VISION_FOLDER, layout_of
from unimm.text import PretrainedTokenizer
from unimm.weights import size_of

OTHER, MAP = "other.safetensors", "tensors.json"


def bring(source: str, out: Path, recipe: Recipe | None = None, unpickle: bool = False) -> None:
    """Write the run `out` out of a published checkpoint: the folder or hub id `source`.

    recipe  the system that it becomes; a folder that `unimm convert` wrote brings its own

    Raises ConvertError, ConfigError, TextError, TokenizerError, one line each, before anything is written.
    """
    folder = local_folder(source)
    release = open_release(folder, unpickle)
    model = class_of(folder)
    extra = check(release, model)
    if recipe is None and not (folder / RECIPE_FILE).is_file():
        raise ConvertError(f"{folder}: say with --recipe which system it is or begins, such as --recipe "
                           "recipes/chameleon.py; a language model alone has no images")
    recipe = of_release(recipe or load_recipe(folder), source)
    layout = layout_of(recipe, PretrainedTokenizer(str(folder)))
    _check_vocabulary(release, model, layout)
    tokenizer, drawn, recipe = image_tokenizer(release, model, recipe)
    places = places_of(release.kind, release.tensors, drawn, extra)
    with aside(out, folder, size_of(release.tensors)) as part:
        _write(part, release, recipe, places)
        if tokenizer is not None:
            save_tokenizer(tokenizer, part / TOKENIZER_FOLDER)
        if isinstance(recipe.image_in, VisionFeatures) and release.kind == "janus":
            model.config.vision_config.save_pretrained(part / VISION_FOLDER)


def of_release(recipe: Recipe, source: str) -> Recipe:
    """The recipe with every part that a release can fill taken from this one."""
    backbone, image_in, image_out = recipe.backbone, recipe.image_in, recipe.image_out
    pretrained = isinstance(backbone, PretrainedBackbone)
    if isinstance(image_in, VisionFeatures):
        image_in = replace(image_in, encoder=PretrainedVision(path=source), weights=source)
    if isinstance(image_out, SeparateHead):
        image_out = replace(image_out, weights=source)
    text = recipe.text if isinstance(recipe.text, PretrainedText) else PretrainedText(path=source)
    return replace(recipe, image_in=image_in, image_out=image_out, text=replace(text, path=source),
                   backbone=replace(backbone, path=source) if pretrained else PretrainedBackbone(path=source))


def _check_vocabulary(release: Release, model: nn.Module, layout: Layout) -> None:
    rows = len(model.get_input_embeddings().weight)
    if layout.text.size > rows:
        raise ConvertError(f"{release.folder}: its tokenizer has {layout.text.size:,} ids, its table {rows:,} rows: "
                           "the tokenizer is another model's; put its own into the folder")
    if release.kind in UNIFIED and layout.vocab.rows > rows:
        raise ConvertError(f"{release.folder}: the recipe's ids end at {layout.vocab.rows - 1:,}, the table has "
                           f"{rows:,} rows: the recipe is of a release with another vocabulary")


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
        recipe = replace(recipe, image_tokenizer=tokenizer_of(kind, wanted, model.config.vq_config))
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
    kept.mkdir()
    for file in small_files(release.folder):
        if file.name != RECIPE_FILE:
            copy_file(file, kept / file.name)
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
