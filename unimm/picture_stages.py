"""The stages that train on pictures: the feature network, the image tokenizer, the diffusion decoder; and what a run
shows of itself while it trains.

Each stage leaves a folder in the run's and is skipped where that is there.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from unimm import system
from unimm.checkpoint.read import load_weights
from unimm.config.check import ConfigError
from unimm.config.images import Contrastive
from unimm.config.recipe import Recipe
from unimm.config.stages import Contrast, Detokenize, PictureStage, Reconstruct
from unimm.diffusion.detokenizer import FlowDetokenizer
from unimm.generate.use import draw
from unimm.images import tokenizer as codec
from unimm.images.base import ImageTokenizer
from unimm.images.losses import Contrast as Contrasting
from unimm.images.losses import Reconstructing
from unimm.images.measure import measure, psnr
from unimm.images.tokenizer import to_codes, to_pixels, to_tensor
from unimm.losses import OfPictures
from unimm.pictures import fit, grid, resized, write_png
from unimm.plan.memory import measure as planned
from unimm.published import vision
from unimm.recipe import recipe_to_json
from unimm.sample import Text
from unimm.status import Status
from unimm.stream.batches import PixelBatches, images_of
from unimm.stream.sources import open_source
from unimm.system import System
from unimm.train import ranks
from unimm.train.loop import Work, run_stage

Preview = Callable[[int], dict[str, float] | None]


def _target(folder: Path, step: int) -> Path:
    (folder / "previews").mkdir(parents=True, exist_ok=True)
    return folder / "previews" / f"step-{step:08d}.png"


def preview_reconstructions(tokenizer: ImageTokenizer, images: np.ndarray, folder: Path, step: int) -> dict[str, float]:
    """Pictures above what comes back of them, and the measures of all `images` for the metrics."""
    found = measure(tokenizer, list(images))
    write_png(_target(folder, step), grid([*images[:8], *found.back[:8]]))
    return {f"preview/{name}": value for name, value in found.values.items()}


def preview_detokenized(decoder: FlowDetokenizer, images: np.ndarray, folder: Path, step: int) -> dict[str, float]:
    """Pictures, what their tokenizer gives back of them, enlarged, and what the decoder does; how near both come."""
    tokenizer, kinds = decoder.tokenizer, {}
    codes = to_codes(tokenizer, [fit(image, tokenizer.config.image) for image in images])
    if tokenizer.draws:
        kinds["enlarged"] = [resized(picture, images.shape[1:3]) for picture in to_pixels(tokenizer, codes)]
    kinds["drawn"] = to_pixels(decoder, codes)
    write_png(_target(folder, step), grid([*images[:8], *(p for some in kinds.values() for p in some[:8])]))
    return {f"psnr_{kind}": psnr(*(to_tensor(list(some)) / 2 for some in (images, found)))
            for kind, found in kinds.items()}


def preview_drawings(system: System, prompts: list[str], folder: Path) -> Preview | None:
    """Drawings of the same few prompts, so that a row of files shows the learning; None without prompts."""
    def preview(step: int) -> None:
        pictures = draw(system, [[Text(p)] for p in prompts], list(range(len(prompts))))
        write_png(_target(folder, step), grid(pictures, prompts, columns=4))

    return preview if prompts else None


def train_pictures(recipe: Recipe, folder: Path, name: str, stage: PictureStage, status: Status) -> None:
    """Bring one stage to its end and its result into the run's folder. Every rank calls this together."""
    match stage:
        case Contrast():
            made, train = system.FEATURES_FOLDER, _train_features
        case Reconstruct():
            made, train = system.TOKENIZER_FOLDER, _train_tokenizer
        case Detokenize():
            made, train = system.DECODER_FOLDER, _train_decoder
    if (folder / made / codec.CONFIG).is_file():
        ranks.say(f"{name}: already done, {folder / made}")
    else:
        torch.manual_seed(stage.seed)
        train(recipe, folder, name, stage, status)
    ranks.barrier()


def _train(recipe: Recipe, folder: Path, name: str, stage: PictureStage, status: Status, module: OfPictures,
           preview: Callable | None = None, captions: bool = False, scale: int = 1) -> Path:
    """The final checkpoint of a module trained on pictures `scale` times as large as the tokenizer's; `preview` takes
    the first of them, the stage's folder and the step. Raises ConfigError where `captions` are needed and a dataset has
    none."""
    datasets = []
    for use in stage.mix:
        images, skipped = images_of(open_source(recipe.data[use.data]), scale * recipe.image_tokenizer.image)
        ranks.say(f"{name}: {len(images):,} images of {use.data}" + (f", {skipped} rows skipped" if skipped else ""))
        if captions and not any(images.texts):
            raise ConfigError(f"stage {name!r} learns from captions, and {use.data!r} has none: a row has one where it "
                              "is one picture and one text; use data of pairs")
        datasets.append(images)
    batches = PixelBatches(datasets, [use.weight for use in stage.mix], stage.batch, stage.seed, ranks.rank(),
                           ranks.world())
    shown = preview and partial(preview, datasets[0].pixels[:64], folder / name)
    work = Work(module.train(), batches, shown, recipe=json.loads(recipe_to_json(recipe)),
                flops=lambda: planned(recipe, None, stage, name).multiplied.flops)
    return run_stage(work, stage, folder / name, name=name, again=f"unimm train {folder}", status=status)


def _train_features(recipe: Recipe, folder: Path, name: str, stage: Contrast, status: Status) -> None:
    """Train the feature network and keep it as transformers does."""
    size = recipe.image_tokenizer.image
    module = Contrasting(vision(recipe.features, size))
    trained = _train(recipe, folder, name, stage, status, module, captions=True)
    if ranks.rank() == 0:
        module = Contrasting(vision(recipe.features, size, weights=False))
        load_weights(trained, module)
        aside, target = folder / name / system.FEATURES_FOLDER, folder / system.FEATURES_FOLDER
        module.vision.save_pretrained(aside)
        aside.rename(target)
        ranks.say(f"{name}: feature network -> {target}")


def _train_tokenizer(recipe: Recipe, folder: Path, name: str, stage: Reconstruct, status: Status) -> None:
    """Train the image tokenizer and keep it, with its fingerprint, for everything that follows."""
    features = system.features_of(recipe, folder)
    tokenizer = codec.first_tokenizer(recipe.image_tokenizer, features).train()
    check_codebook(recipe, tokenizer)
    module = Reconstructing(tokenizer, features)
    captions = any(isinstance(each, Contrastive) for each in module.wanted)
    preview = partial(preview_reconstructions, tokenizer)
    trained = _train(recipe, folder, name, stage, status, module, preview, captions)
    if ranks.rank() == 0:
        tokenizer = codec.build_tokenizer(recipe.image_tokenizer, features)
        load_weights(trained, Reconstructing(tokenizer, features))
        codec.save_tokenizer(tokenizer, folder / system.TOKENIZER_FOLDER)
        ranks.say(f"{name}: image tokenizer {codec.fingerprint(tokenizer)[:12]} -> {folder / system.TOKENIZER_FOLDER}")


def _train_decoder(recipe: Recipe, folder: Path, name: str, stage: Detokenize, status: Status) -> None:
    """Train what draws in the tokenizer's place, from the codes that it gives, and keep it beside it."""
    from unimm.diffusion.detokenizer import Detokenization, FlowDetokenizer

    if not (folder / system.TOKENIZER_FOLDER / codec.CONFIG).is_file():
        raise ConfigError(f"stage {name!r} trains a decoder for an image tokenizer, and there is none yet; put the "
                          "stage that trains the tokenizer before it")
    tokenizer = codec.load_tokenizer(system.tokenizer_of(recipe, folder)).to(ranks.device())
    decoder = FlowDetokenizer(recipe.decoder, tokenizer).to(ranks.device())
    preview, scale = partial(preview_detokenized, decoder), recipe.decoder.scale
    trained = _train(recipe, folder, name, stage, status, Detokenization(decoder), preview, scale=scale)
    if ranks.rank() == 0:
        decoder = FlowDetokenizer(recipe.decoder, tokenizer)
        load_weights(trained, Detokenization(decoder))
        codec.keep(decoder, folder / system.DECODER_FOLDER)
        ranks.say(f"{name}: decoder {codec.fingerprint(decoder)[:12]} -> {folder / system.DECODER_FOLDER}")


def check_codebook(recipe: Recipe, tokenizer: ImageTokenizer) -> None:
    """Refuse a recipe whose codebooks or latents are not those that its tokenizer makes."""
    stated = {b.name: (b.size, b.depth) for b in recipe.codebooks} | {c.name: c.channels for c in recipe.continuous}
    for name, made in (tokenizer.books | tokenizer.channels).items():
        if stated.get(name) != made:
            has, makes = ("nothing stated" if each is None else f"{each} channels" if isinstance(each, int)
                          else f"{each[0]} codes, {each[1]} a position" for each in (stated.get(name), made))
            raise ConfigError(f"{name!r} has {has}, but the image tokenizer makes {makes}; state that")
