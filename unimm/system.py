"""Recipe -> System: the one place where parts are put together, fresh or from a run's folder.

    runs/demo/
      recipe.json        the resolved recipe
      text.model         the text tokenizer, where the run trained it
      feature_network/   the trained feature network, where the run trained it
      image_tokenizer/   the trained image tokenizer, its fingerprint in codes' manifests
      image_tokenizer-STAGE/, codes-STAGE/
                         what a stage of the language model made of it, for the stages behind that one
      backbone/, vision/ the small files of published parts (config.json, tokenizer), so that the run needs their
                         releases no more
      converted/         where `unimm convert` began the run: the release's weights as a checkpoint of step 0
      image_decoder/     the trained decoder, where the recipe has one beside the tokenizer's own
      codes/NAME/        each dataset's images as codes
      STAGE/             checkpoints, metrics.jsonl, previews

A run that was exported has the model's weights beside its recipe instead of stages and codes.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from unimm.checkpoint.folders import MANIFEST, CheckpointError, verify
from unimm.config import model as config
from unimm.config.check import ConfigError
from unimm.config.recipe import Recipe
from unimm.config.tokens import PretrainedText, SentencePieceText
from unimm.disk import copy_file
from unimm.layout import Layout
from unimm.recipe import load_recipe
from unimm.text import BytesTokenizer, PretrainedTokenizer, TextTokenizer, load_sentencepiece
from unimm.vocab import markers, numbered

if TYPE_CHECKING:
    import torch

    from unimm.diffusion.detokenizer import FlowDetokenizer
    from unimm.images.base import ImageTokenizer
    from unimm.model.unified import UnifiedModel

TEXT_FILE, RECIPE_FILE, EXPORT_FILE = "text.model", "recipe.json", "export.json"
TOKENIZER_FOLDER, DECODER_FOLDER = "image_tokenizer", "image_decoder"
CODES_FOLDER, FEATURES_FOLDER = "codes", "feature_network"
BACKBONE_FOLDER, VISION_FOLDER, CONVERTED = "backbone", "vision", "converted"


@dataclass(frozen=True)
class System:
    """Everything that is needed to read and write: what `unimm sample`, `chat` and `eval` work with."""

    recipe: Recipe
    folder: Path
    layout: Layout
    tokenizer: "ImageTokenizer"
    drawer: "ImageTokenizer | FlowDetokenizer"
    """What draws the pixels of codes: the tokenizer itself, or a diffusion decoder."""
    model: "UnifiedModel | None"
    """None where the run's language model is still to come; then `checkpoint` is the image tokenizer's folder."""
    checkpoint: Path
    slow: str | None = None
    """Why the model has no fast body, where it has been asked for one."""


def text_of(recipe: Recipe, folder: Path | None) -> TextTokenizer:
    """The recipe's text tokenizer; without a run's folder, bytes stand in for one that is still to be trained.

    So they do for a release's that is no folder on this machine, under the release's own numbers.
    """
    if isinstance(recipe.text, SentencePieceText):
        return BytesTokenizer() if folder is None else load_sentencepiece(folder / TEXT_FILE)
    kept = _kept(folder, BACKBONE_FOLDER)
    if kept and (kept / "tokenizer.json").is_file():
        return PretrainedTokenizer(str(kept))
    if folder is None and not Path(recipe.text.path).exists():
        stated = numbered(recipe.special_ids, markers(recipe.layout, recipe.continuous))
        codes = [range(book.start, book.start + book.ids) for book in recipe.codebooks if book.start is not None]
        return BytesTokenizer(recipe.text.size, set(stated.values()).union(*codes))
    return PretrainedTokenizer(recipe.text.path)


def layout_of(recipe: Recipe, text: TextTokenizer) -> Layout:
    """The recipe's layout. Raises ConfigError where an image of it is longer than a stage's rows."""
    layout = Layout(recipe.layout, text, recipe.codebooks, recipe.continuous, recipe.special_ids)
    longest = max(recipe.layout.sizes, key=layout.tokens)
    for name, stage in recipe.language.items():
        if stage.too_long == "refuse" and layout.tokens(longest) > stage.seq_len:
            raise ConfigError(f"stage {name!r} has rows of {stage.seq_len:,} tokens, but an image of {longest[0]} x "
                              f"{longest[1]} codes takes {layout.tokens(longest):,}: raise seq_len, leave that size "
                              "out of the layout, or set too_long to 'drop'")
    return layout


def tokenizer_of(recipe: Recipe, folder: Path, stage: str | None = None) -> Path:
    """Where the image tokenizer lies that a stage begins with, or the run as it is: a stage that let it learn has left
    another one behind."""
    before = list(recipe.stages)[:None if stage is None else list(recipe.stages).index(stage)]
    made = (folder / f"{TOKENIZER_FOLDER}-{name}" for name in reversed(before))
    return next((path for path in made if (path / "config.json").is_file()), folder / TOKENIZER_FOLDER)


def codes_of(recipe: Recipe, folder: Path, stage: str) -> Path:
    """Where the codes lie that this tokenizer makes of the data."""
    return folder / tokenizer_of(recipe, folder, stage).name.replace(TOKENIZER_FOLDER, CODES_FOLDER)


def new_model(recipe: Recipe, layout: Layout, tokenizer: "ImageTokenizer", run: Path | None = None,
              weights: bool = True, backbone=None) -> "UnifiedModel":
    """The language model as the recipe starts it, its new rows initialised. Draws from torch's random state.

    `run` is the folder where what it has trained before is taken from. Without `weights` only the shape of what was
    published, which a checkpoint then fills in: from the run's folder where that kept it, so that the release may be
    gone. `backbone` stands in for the recipe's.
    """
    from unimm.model.axes import image_input, image_output, released_parts, take
    from unimm.model.backbone import build_backbone
    from unimm.model.unified import UnifiedModel
    from unimm.published import published

    kept, how, found = None if weights else run, recipe.image_in, None
    read = cache(published)  # each release once, whatever is taken of it
    if backbone is None:
        if isinstance(recipe.backbone, config.PretrainedBackbone):
            found = read(str(_kept(kept, BACKBONE_FOLDER) or recipe.backbone.path), weights)
        backbone = build_backbone(recipe.backbone, layout.vocab, how, tokenizer.code_vectors(), recipe.image_out, found,
                                  weights)
    width = backbone.get_input_embeddings().weight.shape[1]
    if isinstance(how, config.VisionFeatures) and isinstance(how.encoder, config.RecipeVision):
        how = replace(how, encoder=_features(recipe, run))
    reads = image_input(how, layout, width, _kept(kept, VISION_FOLDER), weights, tokenizer)
    model = UnifiedModel(backbone, layout.vocab, reads, image_output(recipe.image_out, layout, width))
    for own, (path, name) in released_parts(how, recipe.image_out).items() if weights else ():
        take(model.get_submodule(own), path, read(path, weights)[1], name)
    return model


def _kept(run: Path | None, folder: str) -> Path | None:
    """What a run's folder has kept of a published part."""
    return run / folder if run and (run / folder).is_dir() else None


def _features(recipe: Recipe, run: Path | None) -> config.VisionEncoder | None:
    trained = _kept(run, FEATURES_FOLDER)
    return config.PretrainedVision(path=str(trained)) if trained else recipe.features


def features_of(recipe: Recipe, folder: Path):
    """The recipe's feature network, a JanusVisionModel: as the run has trained it, or as it was published; None where
    the recipe has none. Raises ConfigError where it is fresh and not trained yet."""
    from unimm.published import vision

    encoder = _features(recipe, folder)
    if isinstance(encoder, config.FreshVision):
        raise ConfigError("the recipe's features are fresh and no stage has trained them; put a stage Contrast before")
    return encoder and vision(encoder, recipe.image_tokenizer.image)


def keep_shapes(recipe: Recipe, folder: Path, model: "UnifiedModel") -> None:
    """Keep in a run's folder what its published parts are: their small files, the text tokenizer's among them."""
    from transformers import AutoConfig

    from unimm.published import small_files

    kept = folder / BACKBONE_FOLDER
    if isinstance(recipe.backbone, config.PretrainedBackbone) and not kept.is_dir():
        AutoConfig.from_pretrained(recipe.backbone.path).save_pretrained(kept)
        own_text = isinstance(recipe.text, PretrainedText) and recipe.text.path == recipe.backbone.path
        for file in small_files(Path(recipe.backbone.path)) if own_text and Path(recipe.backbone.path).is_dir() else ():
            copy_file(file, kept / file.name)
    if isinstance(recipe.image_in, config.VisionFeatures) and not (folder / VISION_FOLDER).is_dir():
        model.image_input.vision.config.save_pretrained(folder / VISION_FOLDER)


def language_of(recipe: Recipe, folder: Path, early: bool = False) -> Path | None:
    """The newest whole checkpoint of a run's latest language stage, or what it was converted from, or the folder itself
    if it was exported. With `early` None where there is none yet, but an image tokenizer.

    Raises ConfigError where there is none, CheckpointError where what there is is damaged.
    """
    from unimm.checkpoint.read import newest

    if (folder / MANIFEST).is_file():
        verify(folder)
        return folder
    for name in reversed([CONVERTED, *recipe.language]):
        if found := newest(folder / name):
            return found
    if early and (folder / TOKENIZER_FOLDER).is_dir():
        return None
    raise ConfigError(f"{folder}: no language model yet; continue with: unimm train {folder}")


def stage_of(checkpoint: Path) -> str:
    """The stage whose weights a checkpoint, or an exported folder, holds."""
    exported = checkpoint / EXPORT_FILE
    return json.loads(exported.read_bytes())["stage"] if exported.is_file() else checkpoint.parent.name


def new_rows(recipe: Recipe, layout: Layout, model: "UnifiedModel") -> dict[str, range]:
    """The rows that must learn, by parameter: all of a fresh model's tables, those that a published one lacks, and all
    fresh ones that images are read and written with."""
    from unimm.model.axes import released_parts

    parts, lacking = model.parts(), range(model.backbone.rows_known, layout.vocab.rows)
    found = {name: lacking for name in [*parts["embeddings"], *parts["head"]] if lacking}
    how, published = recipe.image_in, [*released_parts(recipe.image_in, recipe.image_out), "image_input.tokenizer"]
    if isinstance(how, config.VisionFeatures) and not isinstance(how.encoder, config.FreshVision):
        published.append("image_input.vision")
    fresh = {name: range(len(p)) for name, p in model.named_parameters()
             if name.startswith(("image_input.", "image_output."))
             and not name.startswith(tuple(f"{part}." for part in published))}
    return found | fresh


def load(path: Path, model: "UnifiedModel", recipe: Recipe, layout: Layout, tokenizer: "ImageTokenizer") -> None:
    """Put the weights of a checkpoint into a plain model of shapes: adapters of its stage are merged into what they
    adapt, and rows that a release lacks, which `unimm convert` brought in, start as the recipe says. Draws from torch's
    random state.

    Raises CheckpointError where they are of another model.
    """
    from unimm.checkpoint.read import load_weights
    from unimm.model.backbone import start_rows
    from unimm.model.lora import adapt, merge
    from unimm.weights import open_weights

    if stage_of(path) != CONVERTED:
        lora = recipe.stages[stage_of(path)].train.lora
        if lora:
            adapt(model, lora)
        load_weights(path, model)
        if lora:
            merge(model)
        return
    own = model.state_dict()
    for name, stored in open_weights(path).items():
        shape = tuple(own[name].shape) if name in own else None
        if shape is None or shape[1:] != stored.shape[1:] or shape[:1] < stored.shape[:1]:
            raise CheckpointError(f"{path} is of another model: {name} has shape {stored.shape}, this model {shape}")
        t = stored.read()
        (own[name][:len(t)] if shape else own[name]).copy_(t)
    start_rows(model.backbone, layout.vocab, model.backbone.rows_known, recipe.image_in, recipe.image_out,
               tokenizer.code_vectors())


def drawer_of(recipe: Recipe, folder: Path, tokenizer: "ImageTokenizer",
              model: "UnifiedModel | None" = None) -> "ImageTokenizer | FlowDetokenizer":
    """What draws the run's pictures, from hidden states of `model` where it does. Raises StoredError where the recipe
    has a decoder that isn't there, or is damaged."""
    if isinstance(recipe.decoder, config.TokenizerDecoder):
        return tokenizer

    from unimm.diffusion.detokenizer import FlowDetokenizer
    from unimm.weights import fetch

    what = f"a trained decoder (unimm train {folder} trains it where the recipe has a stage Detokenize)"
    width = model.backbone.config.hidden_size if recipe.decoder.condition == "hidden" else None
    return fetch(folder / DECODER_FOLDER, what, config.Decoder, lambda made: FlowDetokenizer(made, tokenizer, width))


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run. Raises ConfigError where the folder is none."""
    if not (folder / RECIPE_FILE).is_file():
        raise ConfigError(f"{folder}: not a run (no {RECIPE_FILE}); give a folder that `unimm train` wrote: runs/demo")
    return load_recipe(folder)


def open_run(folder: str | Path, device: "torch.device | None" = None, early: bool = False) -> System:
    """A trained run, with the newest whole checkpoint of its latest language stage, on `device`; the CPU by default.

    `early`: also a run that has no language model yet.
    On a GPU weights have the precision that their stage was trained in. They are to stay as they are: a fast body holds
    them in another order.

    Raises ConfigError where the folder is no run or has no trained model yet; TextError, TokenizerError,
    StoredError and CheckpointError where a part of it is damaged.
    """
    from unimm.images.tokenizer import load_tokenizer

    folder = Path(folder)
    recipe = recipe_of(folder)
    found = language_of(recipe, folder, early)
    layout = layout_of(recipe, text_of(recipe, folder))
    tokenizer = load_tokenizer(tokenizer_of(recipe, folder))
    if found is None:
        return System(recipe, folder, layout, tokenizer.to(device), tokenizer, None, folder / TOKENIZER_FOLDER)
    model = new_model(recipe, layout, tokenizer, folder, weights=False)
    load(found, model, recipe, layout, tokenizer)
    # Of what was converted, the first that would go on.
    stage = recipe.stages.get(stage_of(found)) or next(iter(recipe.language.values()), None)
    if device is not None and device.type == "cuda" and stage and stage.precision == "bf16":
        model.bfloat16()
    model.eval().to(device)
    drawer = drawer_of(recipe, folder, tokenizer.eval().to(device), model).to(device)
    return System(recipe, folder, layout, tokenizer, drawer, model, found, model.hasten())
