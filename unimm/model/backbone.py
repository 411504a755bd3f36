"""The language model: a stock transformers causal LM, its table extended by the rows of markers and codes."""

import importlib.util
import shutil
import warnings
from typing import assert_never

import torch

from unimm.config.check import ConfigError
from unimm.config.model import Backbone, FreshBackbone, PretrainedBackbone, SharedTable
from unimm.model.attention import attend, use_packed_attention
from unimm.vocab import Vocab


def build_backbone(config: Backbone, vocab: Vocab, image_in: SharedTable, code_vectors: dict[str, torch.Tensor]):
    """A transformers causal LM with `vocab.rows` rows, all new rows initialised.

    code_vectors  float32 (codes, dim) by codebook name, read where rows start as 'codebook'
    """
    match config:
        case FreshBackbone():
            backbone, known = fresh_backbone(config, vocab.rows), 0
        case PretrainedBackbone(path=path):
            from transformers import AutoModelForCausalLM

            # Not in the bf16 that most are published in: small updates of bf16 weights are lost in rounding.
            backbone = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            published = backbone.get_input_embeddings().weight.shape[0]
            known = min(published, vocab.text_size)  # many tables end in rows of no id, which markers then take
            if vocab.rows > published:
                # Our own initialisation follows; the built-in one needs the mean of all old rows twice.
                backbone.resize_token_embeddings(vocab.rows, mean_resizing=False)
        case _:
            assert_never(config)
    use_packed_attention(backbone)
    init_rows(backbone, vocab, known, image_in, code_vectors)
    return backbone


def fresh_backbone(config: FreshBackbone, rows: int):
    """A transformers causal LM of a stated shape, `rows` of them in its tables, as its own class starts it."""
    shape = dict(
        vocab_size=rows, hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads, intermediate_size=config.mlp, head_dim=config.width // config.heads,
        max_position_embeddings=32768, tie_word_embeddings=False, use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    match config.family:
        case "qwen3":
            from transformers import Qwen3Config, Qwen3ForCausalLM

            return Qwen3ForCausalLM(Qwen3Config(**shape))
        case "llama":
            from transformers import LlamaConfig, LlamaForCausalLM

            return LlamaForCausalLM(LlamaConfig(**shape))
        case _:
            assert_never(config.family)


def recompute_layers(backbone, reentrant: bool) -> None:
    """Keep only what enters each layer and compute the rest again in backward.

    `reentrant` for ZeRO-3, where weights that are gathered again are other tensors, which torch's newer way refuses.
    """
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is not in every version
        # It also makes the embeddings want a gradient, without which frozen tables would cut off what follows them.
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def compile_layers(backbone, recomputed: bool, backend: str = "inductor") -> None:
    """Run each layer through torch.compile, or its parts where it is recomputed, which would leave it uncompiled.

    Attention stays out: it depends on the documents of each batch.

    Raises ConfigError where this machine has no compiler.
    """
    compiler = importlib.util.find_spec("triton") if torch.cuda.is_available() else shutil.which("g++")
    if not compiler:
        missing = "triton" if torch.cuda.is_available() else "a C++ compiler (g++)"
        raise ConfigError(f"compile is True, but torch.compile needs {missing} here; install it, or set compile to "
                          "False")
    use_packed_attention(backbone, torch.compiler.disable(attend))
    for layer in backbone.model.layers:
        for part in layer.children() if recomputed else (layer,):
            part.compile(backend=backend)


@torch.no_grad()
def init_rows(backbone, vocab: Vocab, known: int, image_in: SharedTable, code_vectors: dict[str, torch.Tensor]) -> None:
    """Start the rows from `known` on, in and out. Raises ConfigError where 'codebook' lacks vectors."""
    tables = [backbone.get_input_embeddings().weight]
    if backbone.get_output_embeddings() is not None and backbone.get_output_embeddings().weight is not tables[0]:
        tables.append(backbone.get_output_embeddings().weight)
    for table in tables:
        old, new = table[:known], table[known:vocab.rows]
        spread = float(old.std(0).mean()) if known else backbone.config.initializer_range
        if image_in.rows == "mean" and known:
            new.copy_(old.mean(0) + spread * torch.randn_like(new))
        else:
            new.normal_(0.0, spread)
        if image_in.rows == "codebook":
            for r in vocab.ranges.values():
                if r.shared:
                    table[r.start:r.stop] = _projected(r.name, code_vectors, table.shape[1], spread).to(table)


def _projected(name: str, code_vectors: dict[str, torch.Tensor], width: int, spread: float) -> torch.Tensor:
    """Codes' own vectors, centred, through a random projection to `width` with the table's spread."""
    if name not in code_vectors:
        raise ConfigError(f"image_in.rows is 'codebook', but codebook {name!r} has no vectors; use 'mean' or 'normal'")
    vectors = code_vectors[name].float()
    vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp_min(1e-6)
    return vectors @ torch.randn(vectors.shape[1], width) * (spread / vectors.shape[1] ** 0.5)
