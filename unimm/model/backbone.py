"""The language model: a stock transformers causal LM, its table extended by the rows of markers and codes."""

import importlib.util
import inspect
import shutil
import warnings
from typing import assert_never

import torch

from unimm.config.check import ConfigError
from unimm.config.model import Backbone, FreshBackbone, ImageIn, ImageOut, PretrainedBackbone, SharedSoftmax
from unimm.model.attention import Documents, attend, use_packed_attention
from unimm.model.cross_entropy import soft_cap
from unimm.model.rows import start_rows
from unimm.published import Published, published
from unimm.vocab import Vocab

KNOWN = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral", "chameleon", "emu3_text_model")
"""Families compared with transformers' own classes in tests; others are tried before they are taken."""


def build_backbone(config: Backbone, vocab: Vocab, image_in: ImageIn, code_vectors: dict[str, torch.Tensor],
                   image_out: ImageOut | None = None, found: Published | None = None, weights: bool = True):
    """A transformers causal LM with `vocab.rows` rows, all new rows initialised.

    code_vectors  float32 (codes, dim) by codebook name, read where rows start as 'codebook'
    found         what lies at the path of `config`, where it was read already
    weights       False: only shapes, for weights that a checkpoint will fill in

    Its `rows_known` says how many rows of its table the published model has trained. Raises ConfigError where it can't
    be trained on packed rows.
    """
    match config:
        case FreshBackbone():
            backbone, known = fresh_backbone(config, vocab.rows), 0
        case PretrainedBackbone(path=path, rows=rows):
            found = found or published(path, weights)
            backbone = found.backbone
            # Many tables end in rows of no id, which markers then take.
            known = found.rows if found.complete or rows == "all" else min(found.rows, vocab.text_size)
            if weights and backbone.config.model_type not in KNOWN:
                try_packed(backbone)
            if vocab.rows > found.rows:
                # Our own initialisation follows; the built-in one needs the mean of all old rows twice.
                backbone.resize_token_embeddings(vocab.rows, mean_resizing=False)
        case _:
            assert_never(config)
    use_packed_attention(backbone)
    if weights:
        start_rows(backbone, vocab, known, image_in, image_out or SharedSoftmax(), code_vectors)
    backbone.rows_known = known
    return backbone


def fresh_backbone(config: FreshBackbone, rows: int):
    """A transformers causal LM of a stated shape, `rows` of them in its tables, as its own class starts it."""
    import transformers as tf

    head = config.width // config.heads
    shape = dict(
        vocab_size=rows, hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads, intermediate_size=config.mlp, max_position_embeddings=32768,
        tie_word_embeddings=False, use_cache=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.family != "qwen2":
        shape["head_dim"] = head
    if config.family in ("gemma2", "gemma3"):
        shape["query_pre_attn_scalar"] = head
    if config.family == "gemma3":
        rope = {"full_attention": rope, "sliding_attention": rope}
    kind = "gemma3_text" if config.family == "gemma3" else config.family
    return tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(kind, **shape, rope_parameters=rope))


@torch.no_grad()
def try_packed(backbone) -> None:
    """Compare two short documents, packed, with each alone as the model's own attention sees it.

    Raises ConfigError where they differ, or where the head does not write what the model writes.
    """
    kind, body = backbone.config.model_type, backbone.base_model
    takes = inspect.signature(body.forward).parameters
    if {"inputs_embeds", "position_ids"} - takes.keys() or all(p.kind is not p.VAR_KEYWORD for p in takes.values()):
        raise ConfigError(f"{kind} can't be trained on packed rows: its class takes no positions or documents from "
                          "outside; take another backbone")
    table, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    if head is None:
        raise ConfigError(f"{kind} has no head over its vocabulary; take a causal language model")
    ids = torch.arange(12)[None] % len(table.weight)
    spans = (slice(0, 5), slice(5, 12))
    own = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")  # the one that has whatever a model asks for
    logits = torch.cat([backbone(input_ids=ids[:, span], use_cache=False).logits for span in spans], 1)
    use_packed_attention(backbone)
    document = torch.tensor([[1] * 5 + [2] * 7])
    position = torch.cat([torch.arange(5), torch.arange(7)])[None]
    hidden = body(inputs_embeds=table(ids), position_ids=position, documents=Documents(document),
                  use_cache=False).last_hidden_state
    found = soft_cap(head(hidden), getattr(backbone.config, "final_logit_softcapping", None))
    backbone.set_attn_implementation(own)
    if not torch.allclose(found, logits, atol=1e-3 * float(logits.std()), rtol=1e-3):
        raise ConfigError(f"{kind} can't be trained on packed rows: two documents in one row don't give the logits "
                          "that each has alone, because of its positions, its layers or what it does to its logits; "
                          "take another backbone")


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
    for layer in backbone.base_model.layers:
        for part in layer.children() if recomputed else (layer,):
            part.compile(backend=backend)
