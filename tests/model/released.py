"""Small random models of released classes, saved as transformers saves them, and the layouts that fit them."""

import torch

from unimm.config.model import PretrainedBackbone, PretrainedVision, SeparateHead, VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.tokens import Codebook, Continuous, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.layout import Layout
from unimm.text import BytesTokenizer

SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
             max_position_embeddings=256, bos_token_id=256, eos_token_id=257, pad_token_id=258)
VQ = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
CODES = 24
ROWS = 320
"""Of every table: more than any layout here has ids, as many releases are padded."""
KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3 with images", "mistral", "chameleon", "chameleon, swin",
         "emu3", "janus")


def layout_of(kind: str) -> Layout:
    """Images of 2 x 3 codes of a Chameleon or Emu3, of 4 x 4 of a Janus."""
    codes = LevelLayout(space="visual")
    match kind:
        case "emu3":
            write = ImageLayout(begin="<boi>{h}*{w}<img>", end="<eoi>", levels=(
                LevelLayout(space="visual", row_end="<eol>", row_ends="after", after="<eof>"),))
        case _:
            stop = "count" if kind == "janus" else "marker"
            write = ImageLayout(begin="<boi>", levels=(codes,), end="<eoi>", stop=stop)
    if kind != "janus":
        return Layout(LayoutConfig(write=write, sizes=((2, 3),)), BytesTokenizer(),
                      (Codebook(name="visual", size=CODES),))
    read = ImageLayout(begin="<boi>", levels=(LevelLayout(space="features"),), end="<eoi>")
    return Layout(LayoutConfig(write=write, read=read, sizes=((4, 4),), pixels_per_code=8, unconditional="pad"),
                  BytesTokenizer(), (Codebook(name="visual", size=CODES, shared=False, start=ROWS),),
                  (Continuous(name="features", channels=24, placeholder="<image_placeholder>"),))


def theirs(kind: str):
    """transformers' own class with random weights, far from the usual tiny spread at which all output looks alike."""
    torch.manual_seed(0)
    made = _made(kind).eval()
    if kind == "gemma2":
        made.set_attn_implementation("eager")  # transformers 5.17 takes SDPA by itself, which has no soft cap
    spread = {"generation_embeddings": 2.0, "generation_aligner.hidden": 0.75, "language_model.layers": 0.5}
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim > 1:
                # Codes of a Janus differ in its own table alone: at less every code is followed by the same one.
                p.normal_(0.0, next((s for part, s in spread.items() if kind == "janus" and part in name), 0.25))
            elif "norm" not in name:
                p.normal_(0.0, 0.1)
            else:
                p.add_(0.2 * torch.randn_like(p))
    return made


def _made(kind: str):
    import transformers as tf

    shape = SHAPE | {"vocab_size": ROWS}
    special = layout_of(kind).vocab.special
    start = layout_of(kind).vocab.ranges["visual"].start
    windows = dict(sliding_window=6, head_dim=8)
    gemma3 = shape | windows | dict(query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"])
    match kind:
        case "llama":
            return tf.LlamaForCausalLM(tf.LlamaConfig(**shape))
        case "qwen2":
            return tf.Qwen2ForCausalLM(tf.Qwen2Config(**shape, tie_word_embeddings=True))
        case "qwen3":
            return tf.Qwen3ForCausalLM(tf.Qwen3Config(**shape, head_dim=16))
        case "gemma2":
            return tf.Gemma2ForCausalLM(tf.Gemma2Config(**shape, **windows, query_pre_attn_scalar=8,
                                                        attn_logit_softcapping=2.0, final_logit_softcapping=3.0))
        case "gemma3":
            return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**gemma3))
        case "gemma3 with images":
            vision = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                          image_size=16, patch_size=8)
            return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=gemma3, vision_config=vision))
        case "mistral":
            return tf.MistralForCausalLM(tf.MistralConfig(**shape, **windows))
        case "chameleon" | "chameleon, swin":
            names = {f"IMGIMG{''.join(chr(ord('A') + int(d)) for d in str(k))}Z": start + k for k in range(CODES)}
            return tf.ChameleonForConditionalGeneration(tf.ChameleonConfig(
                **shape, swin_norm="swin" in kind, vocabulary_map={"<image>": ROWS - 1, **names},
                vq_config=VQ | {"embed_dim": 8, "latent_channels": 8, "num_embeddings": CODES}))
        case "emu3":
            names = {f"<|visual token {k:06d}|>": start + k for k in range(CODES)}
            return tf.Emu3ForConditionalGeneration(tf.Emu3Config(
                text_config=shape, vq_config=VQ | {"codebook_size": CODES, "hidden_size": 32},
                vocabulary_map={"<image>": ROWS - 1, "<|extra_200|>": special["<eol>"], **names}))
        case "janus":
            vision = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
                          projection_dim=32, num_image_tokens=16)
            vq = VQ | dict(embed_dim=8, num_embeddings=CODES, latent_channels=8, projection_dim=32,
                           image_token_embed_dim=32, num_patches=4)
            return tf.JanusForConditionalGeneration(tf.JanusConfig(
                text_config=shape | {"model_type": "llama", "tie_word_embeddings": False}, vision_config=vision,
                vq_config=vq, image_token_id=special["<image_placeholder>"], tie_word_embeddings=False))


def logits_of(model, ids: torch.Tensor, **more) -> torch.Tensor:
    """(B, T, ROWS), also of Chameleon, whose own forward masks its codes."""
    return model.lm_head(model.model(input_ids=ids, **more).last_hidden_state) if hasattr(model.config, "swin_norm") \
        else model(input_ids=ids, **more).logits


class NoTokenizer:
    """What `new_model` asks of an image tokenizer."""

    @staticmethod
    def code_vectors() -> dict[str, torch.Tensor]:
        return {"visual": torch.randn(CODES, 8)}


def recipe_of(kind: str, folder, **changes) -> Recipe:
    """The system that a released folder is, weights and all."""
    layout, path = layout_of(kind), str(folder)
    codebook = layout.vocab.ranges["visual"]
    books = (Codebook(name="visual", size=CODES, shared=codebook.shared, start=codebook.start),)
    axes = {}
    if kind == "janus":
        axes = dict(image_in=VisionFeatures(encoder=PretrainedVision(path=path), image=32, weights=path),
                    image_out=SeparateHead(weights=path), continuous=tuple(layout.continuous.values()))
    usual = dict(name=kind, codebooks=books, layout=layout.config, data={}, stages={},
                 backbone=PretrainedBackbone(path=path, rows="all"))
    return Recipe(**(usual | axes | changes))
