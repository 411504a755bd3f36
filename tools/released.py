"""Worlds of released classes: transformers' own Emu3 and Janus, of a small shape, and our model with their weights."""

import tempfile
from dataclasses import replace

import torch
import transformers as tf
from torch import nn

from tools.samplers import EMU3, Ask, World
from unimm.config.images import LlamaGen
from unimm.config.model import PretrainedBackbone, PretrainedVision, SeparateHead, VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.tokens import Codebook, Continuous, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.layout import Layout
from unimm.system import new_model
from unimm.text import BytesTokenizer

TEXT, CODES, ROWS = 2000, 1024, 3072
"""Ids of text, codes, and rows of a table: more than it has ids, as many releases are padded."""
SHAPE = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=176,
             max_position_embeddings=4096)
VQ = dict(base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1)


class NoTokenizer:
    """What `new_model` asks of an image tokenizer: nothing, for all rows are the release's."""

    @staticmethod
    def code_vectors() -> dict[str, torch.Tensor]:
        return {"visual": torch.zeros(CODES, 8)}


def emu3(side: int) -> World:
    """Emu3ForConditionalGeneration, its images of side x side codes."""
    config = LayoutConfig(write=EMU3, sizes=((side, side),), pixels_per_code=8)
    made = Layout(config, BytesTokenizer(TEXT), (Codebook(name="visual", size=CODES),))
    start, special = made.vocab.ranges["visual"].start, made.vocab.special
    names = {f"<|visual token {k:06d}|>": start + k for k in range(CODES)}
    shape = SHAPE | _ids(made)
    theirs = tf.Emu3ForConditionalGeneration(tf.Emu3Config(
        text_config=shape, vq_config=VQ | {"codebook_size": CODES, "hidden_size": 32},
        vocabulary_map={"<image>": ROWS - 1, "<|extra_200|>": special["<|extra_200|>"], **names}))
    return _world(theirs, made, Codebook(name="visual", size=CODES, start=start))


def janus(side: int) -> World:
    """JanusForConditionalGeneration: codes in a table and under a head of their own."""
    book = Codebook(name="visual", size=CODES, shared=False, start=ROWS)
    seen = Continuous(name="features", channels=24, placeholder="<image_placeholder>")
    read, write = (ImageLayout(begin="<boi>", levels=(LevelLayout(space=space),), end="<eoi>", stop="count")
                   for space in ("features", "visual"))
    config = LayoutConfig(write=write, read=read, sizes=((side, side),), pixels_per_code=8, unconditional="pad")
    made = Layout(config, BytesTokenizer(TEXT), (book,), (seen,))
    pixels, width = 8 * side, SHAPE["hidden_size"]
    vision = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=4, image_size=pixels, patch_size=8,
                  projection_dim=width, num_image_tokens=side * side)
    vq = VQ | dict(embed_dim=8, num_embeddings=CODES, latent_channels=8, projection_dim=width,
                   image_token_embed_dim=width, num_patches=side)
    theirs = tf.JanusForConditionalGeneration(tf.JanusConfig(
        text_config=SHAPE | _ids(made) | {"model_type": "llama", "tie_word_embeddings": False}, vision_config=vision,
        vq_config=vq, image_token_id=made.vocab.special["<image_placeholder>"], tie_word_embeddings=False))
    return _world(theirs, made, book, pixels)


def _ids(layout: Layout) -> dict[str, int]:
    return dict(vocab_size=ROWS, bos_token_id=layout.bos, eos_token_id=layout.eos, pad_token_id=layout.pad_id)


@torch.no_grad()
def _world(theirs: nn.Module, layout: Layout, book: Codebook, pixels: int = 0) -> World:
    """Ours on the weights of theirs, read from what theirs saves."""
    torch.manual_seed(0)
    for name, p in theirs.named_parameters():
        if p.ndim == 2:
            p.normal_(0.0, 1.0 if "embed" in name else p.shape[1] ** -0.5)
    theirs.eval()
    with tempfile.TemporaryDirectory() as path:
        theirs.save_pretrained(path)
        recipe = Recipe(name="released", codebooks=(book,), layout=layout.config, data={}, stages={},
                        image_tokenizer=LlamaGen(), backbone=PretrainedBackbone(path=path, rows="all"))
        if pixels:
            vision = VisionFeatures(encoder=PretrainedVision(path=path), image=pixels, weights=path)
            recipe = replace(recipe, image_in=vision, image_out=SeparateHead(weights=path),
                             continuous=tuple(layout.continuous.values()))
        return World(new_model(recipe, layout, NoTokenizer()).eval(), layout, theirs)


@torch.inference_mode()
def draw_janus(world: World, ask: Ask) -> list[int]:
    """The ids of an image by JanusForConditionalGeneration's own loop, greedy."""
    layout = world.layout
    world.peer.generation_config.generation_kwargs = {"boi_token_id": layout.vocab.special["<boi>"]}
    ids = world.prompt(ask)
    made = world.peer.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image",
                               guidance_scale=ask.guidance, do_sample=False, bos_token_id=layout.bos,
                               pad_token_id=layout.pad_id, eos_token_id=layout.eos)
    return (made[0] + layout.vocab.ranges["visual"].start).tolist()
