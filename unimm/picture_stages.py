"""The stages that train on pictures: the feature network, the image tokenizer, the diffusion decoder; and what a run
shows of itself while it trains.

Each stage leaves a folder in the run's and is skipped where that is there.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unimm import system
from unimm.checkpoint.read import load_weights
from unimm.config.check import ConfigError
from unimm.config.images import Contrastive
from unimm.config.recipe import Recipe
from unimm.config.stages import Contrast, Detokenize, PictureStage, Reconstruct
from unimm.diffusion.detokenizer import Detokenization, FlowDetokenizer
from unimm.generate.use import draw, image_states
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
from unimm.sample import Content, Image, Pictures, Text
from unimm.status import Status
from unimm.stream.batches import PixelBatches, images_of
from unimm.stream.sources import open_source
from unimm.system import System
from unimm.train import ranks
from unimm.train.loop import Work, run_stage


def _target(folder: Path, step: int) -> Path:
    (folder / "previews").mkdir(parents=True, exist_ok=True)
    return folder / "previews" / f"step-{step:08d}.png"


def preview_reconstructions(module: Reconstructing, shown: Pictures, folder: Path, step: int) -> dict[str, float]:
    """Pictures above what comes back of them, and the measures of all of them for the metrics."""
    found = measure(module.tokenizer, list(shown.pixels))
    write_png(_target(folder, step), grid([*shown.pixels[:8], *found.back[:8]]))
    return {f"preview/{name}": value for name, value in found.values.items()}


def preview_detokenized(module: Detokenization, shown: Pictures, folder: Path, step: int) -> dict[str, float]:
    """Pictures, what their tokenizer gives back of them, enlarged, and what the decoder does; how near both come."""
    decoder, images, kinds = module.detokenizer, shown.pixels, {}
    tokenizer = decoder.tokenizer
    codes = to_codes(tokenizer, [fit(image, tokenizer.config.image) for image in images])
    if tokenizer.draws:
        kinds["enlarged"] = [resized(picture, images.shape[1:3]) for picture in to_pixels(tokenizer, codes)]
    kinds["drawn"] = to_pixels(decoder, codes, module.states and module.states(codes, shown.texts))
    write_png(_target(folder, step), grid([*images[:8], *(p for some in kinds.values() for p in some[:8])]))
    return {f"psnr_{kind}": psnr(*(to_tensor(list(some)) / 2 for some in (images, found)))
            for kind, found in kinds.items()}


def preview_drawings(system: System, prompts: list[str], folder: Path) -> Callable[[int], None] | None:
    """Drawings of the same few prompts, so that a row of files shows the learning; None without prompts."""
    def preview(step: int) -> None:
        pictures = draw(system, [[Text(p)] for p in prompts], list(range(len(prompts))))
        write_png(_target(folder, step), grid(pictures, prompts, columns=4))

    return preview if prompts else None


def train_pictures(recipe: Recipe, folder: Path, name: str, stage: PictureStage, status: Status) -> None:
    """Bring one stage to its end and what it trains into the run's folder. Every rank calls this together.

    Raises ConfigError where something that it needs is still to come, or captions are needed and a dataset has none.
    """
    made = {Contrast: system.FEATURES_FOLDER, Reconstruct: system.TOKENIZER_FOLDER, Detokenize: system.DECODER_FOLDER}
    target = folder / made[type(stage)]
    if (target / codec.CONFIG).is_file():
        ranks.say(f"{name}: already done, {target}")
        ranks.barrier()
        return
    torch.manual_seed(stage.seed)
    module, part = _module(recipe, folder, name, stage)
    wanted = module.wanted if isinstance(module, Reconstructing) else ()
    captions = isinstance(stage, Contrast) or any(isinstance(each, Contrastive) for each in wanted) or (
        isinstance(module, Detokenization) and module.states is not None)
    side = recipe.image_tokenizer.image * (recipe.decoder.scale if isinstance(stage, Detokenize) else 1)
    datasets = []
    for use in stage.mix:
        images, skipped = images_of(open_source(recipe.data[use.data]), side)
        ranks.say(f"{name}: {len(images):,} images of {use.data}" + (f", {skipped} rows skipped" if skipped else ""))
        if captions and not any(images.texts):
            raise ConfigError(f"stage {name!r} learns from captions, and {use.data!r} has none: a row has one where it "
                              "is one picture and one text; use data of pairs")
        datasets.append(images)
    batches = PixelBatches(datasets, [use.weight for use in stage.mix], stage.batch, stage.seed, ranks.rank(),
                           ranks.world())
    preview = {Contrast: None, Reconstruct: preview_reconstructions, Detokenize: preview_detokenized}[type(stage)]
    shown = preview and partial(preview, module, datasets[0][:64], folder / name)
    work = Work(module.train(), batches, shown, recipe=json.loads(recipe_to_json(recipe)),
                flops=lambda: planned(recipe, None, stage, name).multiplied.flops)
    trained = run_stage(work, stage, folder / name, name=name, again=f"unimm train {folder}", status=status)
    if ranks.rank() == 0:
        module, part = _module(recipe, folder, name, stage, weights=False)
        load_weights(trained, module)
        if isinstance(stage, Contrast):  # as transformers keeps it
            part.save_pretrained(folder / name / target.name)
            (folder / name / target.name).rename(target)
        else:
            codec.save_tokenizer(part, target)
        mark = "" if isinstance(stage, Contrast) else f" {codec.fingerprint(part)[:12]}"
        ranks.say(f"{name}: {target.name.replace('_', ' ')}{mark} -> {target}")
    ranks.barrier()


def _module(recipe: Recipe, folder: Path, name: str, stage: PictureStage,
            weights: bool = True) -> tuple[OfPictures, nn.Module]:
    """What a stage trains, and what of it is kept; without `weights`, which a checkpoint will fill in."""
    match stage:
        case Contrast():
            features = vision(recipe.features, recipe.image_tokenizer.image, weights)
            return Contrasting(features), features
        case Reconstruct():
            features = system.features_of(recipe, folder)
            build = codec.first_tokenizer if weights else codec.build_tokenizer
            tokenizer = build(recipe.image_tokenizer, features).train()
            check_codebook(recipe, tokenizer)
            return Reconstructing(tokenizer, features), tokenizer
        case Detokenize():
            if not (folder / system.TOKENIZER_FOLDER / codec.CONFIG).is_file():
                raise ConfigError(f"stage {name!r} trains a decoder for an image tokenizer, and there is none yet; put "
                                  "the stage that trains the tokenizer before it")
            tokenizer = codec.load_tokenizer(system.tokenizer_of(recipe, folder)).to(ranks.device())
            states, width = _states(recipe, folder, tokenizer) if recipe.decoder.condition == "hidden" else (None, None)
            decoder = FlowDetokenizer(recipe.decoder, tokenizer, width).to(ranks.device())
            return Detokenization(decoder, states), decoder


def _states(recipe: Recipe, folder: Path, tokenizer: ImageTokenizer) -> tuple[Callable, int]:
    """What a decoder of hidden states asks the trained language model for, and their channels."""
    layout = system.layout_of(recipe, system.text_of(recipe, folder))
    model = system.new_model(recipe, layout, tokenizer, folder, weights=False)
    system.load(system.language_of(recipe, folder), model, recipe, layout, tokenizer)
    model.eval().to(ranks.device())

    def states(contents: list[Content], texts: tuple[str, ...]) -> list[Tensor]:
        return image_states(model, layout, [(Text(text), Image(each)) for each, text in zip(contents, texts)])

    return states, model.backbone.config.hidden_size


def check_codebook(recipe: Recipe, tokenizer: ImageTokenizer) -> None:
    """Refuse a recipe whose codebooks or latents are not those that its tokenizer makes."""
    stated = {b.name: (b.size, b.depth) for b in recipe.codebooks} | {c.name: c.channels for c in recipe.continuous}
    for name, made in (tokenizer.books | tokenizer.channels).items():
        if stated.get(name) != made:
            has, makes = ("nothing stated" if each is None else f"{each} channels" if isinstance(each, int)
                          else f"{each[0]} codes, {each[1]} a position" for each in (stated.get(name), made))
            raise ConfigError(f"{name!r} has {has}, but the image tokenizer makes {makes}; state that")
