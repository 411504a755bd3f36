"""Comparisons between two ways of one system, each a short declaration: the runs it needs, and what is compared.

`tools/run_systems.py` trains and scores the runs like any system, and writes the rows into docs/systems.json.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recipes.toys import (
    base,
    emu3,
    ett,
    fqgan,
    illume_plus,
    lavit,
    liquid,
    ming_univision,
    seed_llama,
    tokenflow,
    vila_u,
)
from unimm.config.model import TokenizerDecoder
from unimm.config.recipe import Recipe
from unimm.config.stages import Contrast, Reconstruct

Row = dict[str, tuple[float, int]]
"""Measure -> (value, count)."""


@dataclass(frozen=True)
class Comparison:
    """`runs`: label -> recipe, by whose name its run is called. `keys`: what is compared of their reports, or
    `measured`: rows from the folder of the only run, once it has an image decoder."""

    question: str
    runs: dict[str, Recipe]
    keys: tuple[str, ...] = ()
    measured: Callable[[Path], dict[str, Row]] | None = None


def enlarged(run: Path, count: int = 200) -> dict[str, Row]:
    """Scenes at twice their size: by the run's diffusion decoder, and by bicubic enlargement of the tokenizer's own."""
    from data.shapes import evaluation_scenes
    from data.shapes_judge import judge_scene
    from data.shapes_world import draw
    from unimm.images.measure import likeness
    from unimm.images.tokenizer import load_tokenizer, to_codes, to_pixels
    from unimm.pictures import resized
    from unimm.system import drawer_of, recipe_of, tokenizer_of

    recipe, scenes = recipe_of(run), evaluation_scenes(count, 0)
    tokenizer = load_tokenizer(tokenizer_of(recipe, run))
    codes = to_codes(tokenizer, [draw(scene) for scene in scenes])
    large = [draw(scene, 2) for scene in scenes]
    ways = {"diffusion decoder at twice the size": to_pixels(drawer_of(recipe, run, tokenizer), codes),
            "tokenizer's decoder, enlarged": [resized(p, (64, 64)) for p in to_pixels(tokenizer, codes)]}
    return {way: {**{name: (value, count) for name, value in likeness(large, drawn).items()},
                  "judge": (float(np.mean([judge_scene(p, s).ok for p, s in zip(drawn, scenes)])), count)}
            for way, drawn in ways.items()}


JOINT = replace(ett.recipe, name="ett_joint",
                stages={name: stage for name, stage in ett.recipe.stages.items() if name != "sft"})
FROZEN = replace(JOINT, name="ett_frozen", stages={
    name: replace(stage, reconstruction=0.0, train=type(stage.train)()) if name == "semantic" else stage
    for name, stage in JOINT.stages.items()})
PIXELS = replace(tokenflow.recipe, name="tokenflow_pixels", features=None,
                 image_tokenizer=replace(base.IMAGES, quantizer=tokenflow.recipe.image_tokenizer.pixel),
                 stages={name: stage for name, stage in tokenflow.recipe.stages.items() if name != "features"})

def budgeted(recipe: Recipe) -> Recipe:
    """The image tokenizer alone, at the steps that all of them have."""
    kept = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, Contrast | Reconstruct)}
    kept |= {name: replace(stage, steps=base.TOKENIZER.steps) for name, stage in kept.items()
             if isinstance(stage, Reconstruct)}
    used = {use.data for stage in kept.values() for use in stage.mix}
    return replace(recipe, name=f"{recipe.name}_tokenizer", stages=kept, decoder=TokenizerDecoder(),
                   data={name: source for name, source in recipe.data.items() if name in used})


TOKENIZERS = (liquid, emu3, seed_llama, tokenflow, illume_plus, fqgan, vila_u, lavit, ett, ming_univision)

COMPARISONS = {
    "tokenizers": Comparison(
        f"How do image tokenizers compare at equal training budget, {base.TOKENIZER.steps:,} steps of "
        f"{base.TOKENIZER.batch} pictures? Liquid's and Janus's are one; what contrast has taught the features of "
        "others before is not counted.",
        {system.recipe.name: budgeted(system.recipe) for system in TOKENIZERS},
        ("tokenizer.tokens.mean", "tokenizer.psnr", "tokenizer.ssim", "tokenizer.judge", "tokenizer.rfid.random",
         "tokenizer.probe.colour", "tokenizer.probe.shape", "tokenizer.words.all")),
    "detokenizer": Comparison(
        "ILLUME+: is a diffusion decoder at twice the size better than enlarging what the tokenizer's own draws?",
        {"illume_plus": illume_plus.recipe}, measured=enlarged),
    "joint": Comparison(
        "ETT: does tuning the tokenizer with the language model help answers, at equal steps, and what does it cost in "
        "reconstruction?",
        {"tokenizer tuned": JOINT, "tokenizer frozen": FROZEN},
        ("vqa.exact_match", "tokenizer.psnr", "tokenizer.judge", "tokenizer.probe.colour", "tokenizer.probe.shape")),
    "index": Comparison(
        "TokenFlow: do indices that mean pixels and features answer better than indices of pixels alone?",
        {"shared index": tokenflow.recipe, "pixels alone": PIXELS},
        ("vqa.exact_match", "t2i.single", "t2i.two", "tokenizer.psnr", "tokenizer.probe.colour",
         "tokenizer.probe.shape")),
}
