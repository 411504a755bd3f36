"""Recipe -> System: the one place where parts are put together, fresh or from a run's folder.

    runs/demo/
      recipe.json        the resolved recipe
      text.model         the text tokenizer, where the run trained it
      image_tokenizer/   the trained image tokenizer, its fingerprint in codes' manifests
      codes/NAME/        each dataset's images as codes
      STAGE/             checkpoints, metrics.jsonl, previews

A run that was exported has the model's weights beside its recipe instead of stages and codes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from unimm.config.check import ConfigError
from unimm.config.recipe import Recipe
from unimm.config.stages import NextToken, Stage
from unimm.config.tokens import PretrainedText, SentencePieceText
from unimm.layout import Layout
from unimm.recipe import load_recipe
from unimm.text import BytesTokenizer, PretrainedTokenizer, TextTokenizer, load_sentencepiece

if TYPE_CHECKING:
    from unimm.images.base import ImageTokenizer
    from unimm.model.unified import UnifiedModel

TEXT_FILE, TOKENIZER_FOLDER, RECIPE_FILE, EXPORT_FILE = "text.model", "image_tokenizer", "recipe.json", "export.json"


@dataclass(frozen=True)
class System:
    """Everything that is needed to read and write: what `unimm sample`, `chat` and `eval` work with."""

    recipe: Recipe
    folder: Path
    layout: Layout
    tokenizer: "ImageTokenizer"
    model: "UnifiedModel"
    checkpoint: Path


def text_of(recipe: Recipe, folder: Path | None) -> TextTokenizer:
    """The recipe's text tokenizer; without a run's folder, bytes stand in for one that is still to be trained."""
    match recipe.text:
        case PretrainedText(path=path):
            return PretrainedTokenizer(path)
        case SentencePieceText():
            return BytesTokenizer() if folder is None else load_sentencepiece(folder / TEXT_FILE)
        case _:
            assert_never(recipe.text)


def layout_of(recipe: Recipe, text: TextTokenizer) -> Layout:
    return Layout(recipe.layout, text, recipe.codebooks, recipe.continuous, recipe.special_ids)


def new_model(recipe: Recipe, layout: Layout, tokenizer: "ImageTokenizer", image_weight: float = 1.0,
              z_loss: float = 0.0) -> "UnifiedModel":
    """The language model as the recipe starts it, its new rows initialised. Draws from torch's random state."""
    from unimm.model.backbone import build_backbone

    vectors = {recipe.image_tokenizer.codebook: tokenizer.code_vectors()}
    backbone = build_backbone(recipe.backbone, layout.vocab, recipe.image_in, vectors)
    return around(backbone, recipe, layout, image_weight, z_loss)


def around(backbone, recipe: Recipe, layout: Layout, image_weight: float = 1.0,
           z_loss: float = 0.0) -> "UnifiedModel":
    """The language model that has this backbone, with the recipe's ways to read and write images."""
    from unimm.model.image_input import ImageInput
    from unimm.model.unified import UnifiedModel

    plans = [*layout.write_plans.values(), *layout.read_plans.values()]
    most = max(sum(plan.lengths(level)[1] for level in range(len(plan.grids))) for plan in plans)
    if 0 < recipe.image_in.places < most:
        raise ConfigError(f"image_in.places is {recipe.image_in.places}, but an image of this layout has {most} codes")
    begins = sorted({plan.header[0] for plan in plans})
    width = backbone.get_input_embeddings().weight.shape[1]
    image_input = ImageInput(recipe.image_in, layout.vocab, begins, width)
    return UnifiedModel(backbone, layout.vocab, image_input, image_weight, z_loss)


def trained_language(recipe: Recipe, folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's latest language stage, or the folder itself if it was exported.

    Raises CheckpointError where what there is is damaged.
    """
    from unimm.checkpoint.manifest import MANIFEST, verify
    from unimm.checkpoint.read import newest

    if (folder / MANIFEST).is_file():
        verify(folder)
        return folder
    stages = [name for name, stage in recipe.stages.items() if isinstance(stage, NextToken)]
    return next((path for name in reversed(stages) if (path := newest(folder / name))), None)


def stage_of(checkpoint: Path) -> str:
    """The stage whose weights a checkpoint, or an exported folder, holds."""
    exported = checkpoint / EXPORT_FILE
    return json.loads(exported.read_bytes())["stage"] if exported.is_file() else checkpoint.parent.name


def new_rows(recipe: Recipe, layout: Layout, model: "UnifiedModel") -> dict[str, range]:
    """The rows that must learn, by parameter: all of a fresh model's tables, those that a published one lacks, and all
    that images are read with."""
    known = 0 if recipe.backbone.kind == "fresh" else layout.vocab.text_size
    parts, found = model.parts(), {}
    for name in [*parts["embeddings"], *parts["head"]] if known < layout.vocab.rows else ():
        found[name] = range(known, layout.vocab.rows)
    return found | {f"image_input.{name}": range(len(p)) for name, p in model.image_input.named_parameters()}


def load_stage(path: Path, model: "UnifiedModel", stage: Stage) -> None:
    """Put the weights of a checkpoint of `stage` into a plain model; adapters are merged into what they adapt."""
    from unimm.checkpoint.read import load_weights

    if stage.train.lora:
        from unimm.model.lora import adapt, merge

        adapt(model, stage.train.lora)
    load_weights(path, model)
    if stage.train.lora:
        merge(model)


def open_run(folder: str | Path) -> System:
    """A trained run, with the newest whole checkpoint of its latest language stage.

    Raises ConfigError where the folder is no run or has no trained model yet; TextError, TokenizerError
    and CheckpointError where a part of it is damaged.
    """
    from unimm.images.tokenizer import load_tokenizer

    folder = Path(folder)
    if not (folder / RECIPE_FILE).is_file():
        raise ConfigError(f"{folder}: not a run (no {RECIPE_FILE}); give a folder that `unimm train` wrote: runs/demo")
    recipe = load_recipe(folder)
    found = trained_language(recipe, folder)
    if found is None:
        raise ConfigError(f"{folder}: no language model yet; continue with: unimm train {folder}")
    layout = layout_of(recipe, text_of(recipe, folder))
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    model = new_model(recipe, layout, tokenizer)
    load_stage(found, model, recipe.stages[stage_of(found)])
    return System(recipe, folder, layout, tokenizer.eval(), model.eval(), found)
