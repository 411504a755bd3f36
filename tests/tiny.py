"""The demo's system, small enough to train two steps of every stage within seconds."""

from dataclasses import replace

from recipes.demo import recipe as demo
from unimm.config.data import Shapes
from unimm.config.model import FreshBackbone
from unimm.config.recipe import Recipe
from unimm.config.tokens import SentencePieceText

SMALL = {"pairs": 40, "chats": 20, "edits": 20}


def shortened(recipe: Recipe, steps: int = 2) -> Recipe:
    """Any recipe at two steps a stage, with a small backbone and little data; its format is untouched."""
    sizes = {"reconstruct": {"batch": 4}, "next_token": {"step_tokens": 2 * 256, "seq_len": 256}}
    stages = {name: replace(stage, steps=steps, log_every=1, preview_every=steps, save_every=steps,
                            **sizes[stage.objective]) for name, stage in recipe.stages.items()}
    data = {name: replace(source, count=SMALL[source.part]) if isinstance(source, Shapes) else source
            for name, source in recipe.data.items()}
    return replace(recipe, stages=stages, data=data, text=SentencePieceText(vocab_size=400, texts=200),
                   backbone=FreshBackbone(width=32, layers=2, heads=2, kv_heads=2, mlp=64),
                   image_tokenizer=replace(recipe.image_tokenizer, width=16))


TINY = shortened(demo)
