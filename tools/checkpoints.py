"""The table of docs/checkpoints.md: published checkpoints, how to convert them, and what they take, from their sizes.

    python -m tools.checkpoints

writes the table between its marks. Parameters are counted on the class itself, built without storage.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as tf

PAGE = Path(__file__).parents[1] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- checkpoints: written by tools/checkpoints.py -->\n", "<!-- end of checkpoints -->\n"
FILE = 5e9  # bytes of one file, the default of --split and what publishers keep to
MAP = {"<image>": 0}  # asked for by the classes, of no weight


@dataclass(frozen=True)
class Known:
    """A published checkpoint. `sizes`: where the numbers of `config` were read."""

    id: str
    recipe: str
    config: tf.PreTrainedConfig
    sizes: str


def janus(width: int, mlp: int, layers: int, heads: int) -> tf.JanusConfig:
    text = tf.LlamaConfig(vocab_size=102400, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
                          num_attention_heads=heads, tie_word_embeddings=False)
    return tf.JanusConfig(text_config=text, vision_config={"projection_dim": width}, tie_word_embeddings=False,
                          vq_config={"projection_dim": width, "image_token_embed_dim": width})


def dense(kind, layers: int, width: int, mlp: int, heads: int, kv: int, vocab: int, tied: bool = False, **more):
    return kind(num_hidden_layers=layers, hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
                num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=tied, **more)


def known() -> list[Known]:
    chameleon = dense(tf.ChameleonConfig, 48, 8192, 22016, 64, 8, 65536, swin_norm=True, vocabulary_map=MAP)
    small, large = janus(2048, 5632, 24, 16), janus(4096, 11008, 30, 32)
    liquid = tf.GemmaConfig(vocab_size=256000 + 8192)
    ours, port = "not seen; the count agrees with its published one", "transformers' own defaults"
    return [
        Known("facebook/chameleon-7b", "chameleon_7b", tf.ChameleonConfig(vocabulary_map=MAP), port),
        Known("facebook/chameleon-30b", "chameleon_30b", chameleon, ours),
        Known("leloy/Anole-7b-v0.1-hf", "anole_7b", tf.ChameleonConfig(vocabulary_map=MAP), "Chameleon 7B's"),
        Known("Emu3-community/Emu3-Chat-hf", "emu3_chat", tf.Emu3Config(vocabulary_map=MAP), port),
        Known("Emu3-community/Emu3-Gen-hf", "emu3_gen", tf.Emu3Config(vocabulary_map=MAP), port),
        Known("deepseek-community/Janus-Pro-1B", "janus_pro_1b", small, ours),
        Known("deepseek-community/Janus-Pro-7B", "janus_pro_7b", large, ours),
        Known("Junfeng5/Liquid_V1_7B", "liquid_7b", liquid, "transformers' Gemma 7B and 8,192 rows"),
        Known("meta-llama/Llama-3.1-8B", "", dense(tf.LlamaConfig, 32, 4096, 14336, 32, 8, 128256), ours),
        Known("Qwen/Qwen2.5-7B", "", dense(tf.Qwen2Config, 28, 3584, 18944, 28, 4, 152064), ours),
        Known("Qwen/Qwen3-8B", "", dense(tf.Qwen3Config, 36, 4096, 12288, 32, 8, 151936, head_dim=128), ours),
        Known("google/gemma-2-9b", "",
              dense(tf.Gemma2Config, 42, 3584, 14336, 16, 8, 256000, True, head_dim=256), ours),
        Known("google/gemma-3-1b-pt", "",
              dense(tf.Gemma3TextConfig, 26, 1152, 6912, 4, 1, 262144, True, head_dim=256), ours),
        Known("mistralai/Mistral-7B-v0.3", "", dense(tf.MistralConfig, 32, 4096, 14336, 32, 8, 32768), ours),
    ]


def parameters(config: tf.PreTrainedConfig) -> int:
    """Counted once where two names share a tensor."""
    whole = {"chameleon": tf.ChameleonForConditionalGeneration, "emu3": tf.Emu3ForConditionalGeneration,
             "janus": tf.JanusForConditionalGeneration}
    with torch.device("meta"):
        kind = whole.get(config.model_type)
        model = kind(config) if kind else tf.AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


def table() -> str:
    lines = ["| checkpoint | recipe | parameters | on disk, bf16 | memory to convert | memory to open, fp32 | "
             "sizes from |",
             "|---|---|---|---|---|---|---|"]
    for each in known():
        count = parameters(each.config)
        recipe = f"`recipes/systems/{each.recipe}.py`" if each.recipe else "one of your own"
        lines.append(f"| `{each.id}` | {recipe} | {count / 1e9:.2f} B | {2 * count / 1e9:.1f} GB | "
                     f"{min(2 * count, FILE) / 1e9:.1f} GB | {4 * count / 1e9:.1f} GB | {each.sizes} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
