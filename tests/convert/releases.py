"""Tiny random checkpoints as their publishers write them: by transformers' own classes, with a tokenizer each."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import transformers as tf
from tiny import TINY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from unimm.config.images import Chameleon, Emu3, LlamaGen
from unimm.config.model import PretrainedBackbone, PretrainedVision, SeparateHead, SharedTable, VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.tokens import Chat, Codebook, Continuous, ImageLayout, Layout, LevelLayout, PretrainedText

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64,
            max_position_embeddings=512)
VQ = dict(base_channels=32, channel_multiplier=[1, 1, 1, 2], num_res_blocks=1)
CODES = 96
PLAIN = ("llama", "llama tied", "qwen2", "qwen3", "gemma2", "gemma3", "mistral")
UNIFIED = ("chameleon", "emu3", "janus")


def write_text(folder: Path, tokens: list[str] = (), rows: int = 0) -> list[str]:
    """A byte-level tokenizer with `tokens` behind its 256 bytes, and what transformers keeps beside it; all tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens = ["<pad>", "<s>", "</s>", *tokens]
    made.add_special_tokens(tokens)
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return tokens


def randomised(model, dtype=torch.float32):
    """Random weights of a size that matters everywhere, norms and biases too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.to(dtype).eval()


def plain(kind: str, folder: Path, dtype=torch.bfloat16, rows: int = 264):
    """A causal LM of 259 ids of text in a table of `rows`; the model that was saved."""
    shape = TEXT | {"vocab_size": rows, "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256}
    match kind:
        case "llama":
            model = tf.LlamaForCausalLM(tf.LlamaConfig(**shape, tie_word_embeddings=False))
        case "llama tied":
            model = tf.LlamaForCausalLM(tf.LlamaConfig(**shape, tie_word_embeddings=True))
        case "qwen2":
            model = tf.Qwen2ForCausalLM(tf.Qwen2Config(**shape, tie_word_embeddings=True))
        case "qwen3":
            model = tf.Qwen3ForCausalLM(tf.Qwen3Config(**shape, head_dim=16, tie_word_embeddings=False))
        case "gemma2":
            model = tf.Gemma2ForCausalLM(tf.Gemma2Config(**shape, head_dim=16, sliding_window=8))
        case "gemma3":
            model = tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**shape, head_dim=16, sliding_window=8))
        case "mistral":
            model = tf.MistralForCausalLM(tf.MistralConfig(**shape, head_dim=16, sliding_window=None))
    model = randomised(model, dtype)
    model.save_pretrained(folder)
    write_text(folder)
    return model


def codes_of(kind: str) -> list[str]:
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    return [f"IMGIMG{str(k).translate(letters)}Z" if kind == "chameleon" else f"<|visual token {k:06d}|>"
            for k in range(CODES)]


def unified(kind: str, folder: Path, dtype=torch.bfloat16):
    """A whole Chameleon, Emu3 or Janus of 96 codes; the model that was saved."""
    markers = {"chameleon": ["<racm3:break>", "<eoss>", "<image>"], "janus": ["<boi>", "<eoi>", "<image>"],
               "emu3": ["<image>", "<|extra_200|>", "<|image start|>", "<|image token|>", "<|image end|>"]}[kind]
    tokens = write_text(folder, markers + (codes_of(kind) if kind != "janus" else []))
    at = {token: 256 + n for n, token in enumerate(tokens)}
    ids = {"vocab_size": 256 + len(tokens), "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256}
    match kind:
        case "chameleon":
            vq = VQ | {"embed_dim": 8, "latent_channels": 8, "num_embeddings": CODES}
            model = tf.ChameleonForConditionalGeneration(tf.ChameleonConfig(
                **TEXT, **ids, vq_config=vq, vocabulary_map=at, tie_word_embeddings=False))
        case "emu3":
            model = tf.Emu3ForConditionalGeneration(tf.Emu3Config(
                text_config=TEXT | ids, vq_config=VQ | {"codebook_size": CODES, "hidden_size": 64}, vocabulary_map=at,
                tie_word_embeddings=False))
        case "janus":
            vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
                      "patch_size": 8, "projection_dim": 32, "mlp_ratio": 2.0, "num_image_tokens": 16}
            vq = VQ | {"latent_channels": 8, "num_embeddings": CODES, "num_patches": 4, "projection_dim": 32,
                       "image_token_embed_dim": 32}
            model = tf.JanusForConditionalGeneration(tf.JanusConfig(
                text_config=tf.LlamaConfig(**TEXT, **ids), vision_config=vision, vq_config=vq, image_token_id=261))
    model = randomised(model, dtype)
    model.save_pretrained(folder)
    return model


TURNS = Chat(system=("<s>", ""), user=("[user]", ""), assistant=("[bot]", "</s>"))


def recipe_of(kind: str) -> Recipe:
    """The tiny recipe of a release: markers and codes by the names that its tokenizer has."""
    text = PretrainedText(path="somewhere")
    plainly = ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>")
    base = replace(TINY, text=text, backbone=PretrainedBackbone(path="somewhere"), image_in=SharedTable())
    sizes = {"sizes": ((4, 4),), "pixels_per_code": 8}
    shape = {"width": 32, "multipliers": (1, 1, 1, 2), "blocks": 1, "image": 32, "fit": "short_side", "size": CODES}
    match kind:
        case "chameleon":
            image = ImageLayout(begin="<racm3:break>", levels=(LevelLayout(space="visual"),), end="<eoss>")
            book = Codebook(name="visual", size=CODES, token="IMGIMG{letters}Z")
            return replace(base, image_tokenizer=Chameleon(**shape), codebooks=(book,), stages={},
                           layout=Layout(write=image, chat=TURNS, **sizes))
        case "emu3":
            level = LevelLayout(space="visual", row_end="<|extra_200|>", row_ends="after")
            image = ImageLayout(begin="<|image start|>{h}*{w}<|image token|>", levels=(level,), end="<|image end|>")
            book = Codebook(name="visual", size=CODES, token="<|visual token {code:06d}|>")
            return replace(base, image_tokenizer=Emu3(**shape), codebooks=(book,), stages={},
                           layout=Layout(write=image, chat=TURNS, **sizes))
        case "janus":
            read = replace(plainly, levels=(LevelLayout(space="vision"),))
            return replace(
                base, image_tokenizer=LlamaGen(**shape, attention=(3,)),
                codebooks=(Codebook(name="visual", size=CODES, shared=False),),
                continuous=(Continuous(name="vision", channels=32, placeholder="<image>"),), stages={},
                layout=Layout(write=replace(plainly, stop="count"), read=read, chat=TURNS, **sizes),
                image_in=VisionFeatures(encoder=PretrainedVision(path="somewhere"), image=32), image_out=SeparateHead())
        case _:
            return replace(base, layout=replace(TINY.layout, chat=TURNS))


def recipe_file(recipe: Recipe, path: Path) -> Path:
    from unimm.recipe import recipe_to_json

    path.write_text(recipe_to_json(recipe))
    return path


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
