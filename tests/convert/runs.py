"""Runs as training leaves them, their weights random: what an export makes of them does not depend on learning."""

from dataclasses import replace
from pathlib import Path

import torch
from convert.releases import plain, recipe_of
from tiny import TINY

from unimm.checkpoint.write import Saver
from unimm.config.model import PretrainedBackbone, SharedTable
from unimm.config.recipe import Recipe
from unimm.config.tokens import PretrainedText
from unimm.config.trains import Lora, Trains
from unimm.images.tokenizer import build_tokenizer, save_tokenizer
from unimm.model.lora import adapt
from unimm.recipe import recipe_to_json
from unimm.system import keep_shapes, layout_of, new_model, text_of
from unimm.text import train_sentencepiece

FRESH = replace(TINY, image_in=SharedTable(rows="normal"))
LORA = Trains(parts=("new_rows", "norms"), lora=Lora(rank=3, alpha=5.0))


def on_release(folder: Path, kind: str = "llama tied", train: Trains | None = None) -> Recipe:
    """A recipe that extends a release, which it writes into `folder`."""
    plain(kind, folder, torch.float32, rows=264)
    recipe = recipe_of(kind)
    stages = recipe.stages | {"sft": replace(recipe.stages["sft"], train=train or Trains())}
    return replace(recipe, backbone=PretrainedBackbone(path=str(folder)), text=PretrainedText(path=str(folder)),
                   stages=stages)


def saved(recipe: Recipe, folder: Path) -> Path:
    """A run of the recipe with one checkpoint of its last stage."""
    folder.mkdir()
    (folder / "recipe.json").write_text(recipe_to_json(recipe))
    words = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "ring")]
    text = train_sentencepiece([f"{a} above {b}" for a in words for b in words], 300)
    (folder / "text.model").write_bytes(text.model)
    tokenizer = build_tokenizer(recipe.image_tokenizer)
    save_tokenizer(tokenizer, folder / "image_tokenizer")
    model = new_model(recipe, layout_of(recipe, text_of(recipe, folder)), tokenizer)
    keep_shapes(recipe, folder, model)
    if (lora := recipe.stages["sft"].train.lora) is not None:
        adapt(model, lora)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    saver = Saver(folder / "sft")
    saver.save(1, model.state_dict(), {}, {"stage": "sft"}, {})
    saver.wait()
    return folder
