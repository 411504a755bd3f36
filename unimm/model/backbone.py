"""The language model: a stock transformers causal LM, its table extended by the rows of markers and codes.

    W width   K old rows   M new rows

New rows are drawn from torch's random state on the host, before DeepSpeed divides anything: the same on every rank.
What it multiplies is counted from its modules, for `unimm plan` and for the MFU that a run logs.
"""

import importlib.util
import inspect
import shutil
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from unimm.config import model as config
from unimm.config.check import ConfigError
from unimm.hardware import Multiplied
from unimm.model.attention import Documents, attend, head_width, use_packed_attention
from unimm.model.cross_entropy import soft_cap
from unimm.published import COMPLETE, published
from unimm.vocab import Vocab

AT_ONCE = 1 << 16
"""config.Rows of a table in float32 at one time, beside the table."""


@torch.no_grad()
def start_rows(backbone: nn.Module, vocab: Vocab, known: int, image_in: config.ImageIn, image_out: config.ImageOut,
               code_vectors: dict[str, Tensor]) -> None:
    """Start the rows from `known` up to `vocab.rows` in both tables of a causal LM.

    Raises ConfigError where 'codebook' lacks vectors, or a tied head is to start otherwise than its table.
    """
    table, head = (layer.weight for layer in (backbone.get_input_embeddings(), backbone.get_output_embeddings()))
    shared = image_in if isinstance(image_in, config.SharedTable) else config.SharedTable()
    out = image_out.rows if isinstance(image_out, config.SharedSoftmax) else "as_read"
    if table is head and out != "as_read":
        raise ConfigError(f"image_out.rows is {out!r}, but this backbone reads and writes through one table; set it to "
                          "'as_read', or take a backbone whose head is not tied")
    usual = backbone.config.initializer_range
    _start(table, vocab, known, shared.rows, shared.spread, code_vectors, usual)
    if table is not head:
        _start(head, vocab, known, shared.rows if out == "as_read" else out, shared.spread, code_vectors, usual)
        bias = backbone.get_output_embeddings().bias
        if bias is not None and known < vocab.rows:
            bias[known:vocab.rows] = bias[:known].mean() if known else 0.0


def _start(table: Tensor, vocab: Vocab, known: int, rows: config.Rows | str, spread: float, vectors: dict[str, Tensor],
           usual: float) -> None:
    old, new = table[:known], table[known:vocab.rows]
    if not len(new):
        return
    if rows == "zero":
        new.zero_()
    elif not known or rows == "normal":
        new.normal_(0.0, float(_moments(old)[1].diagonal().sqrt().mean()) if known else usual)
    elif rows == "mean":
        new.copy_(_moments(old)[0])
    else:
        new.copy_(like(old, len(new), spread))
    for r in vocab.ranges.values():
        if rows == "codebook" and r.shared and r.start >= known:
            if r.name not in vectors:
                raise ConfigError(f"image_in.rows is 'codebook', but codebook {r.name!r} has no vectors; use "
                                  "'covariance' or 'normal'")
            width = float(table[:known].std(0).mean()) if known else usual
            own = vectors[r.name].float()  # centred, through a random projection with the table's spread
            own = (own - own.mean(0)) / own.std(0).clamp_min(1e-6)
            own = own @ torch.randn(own.shape[1], table.shape[1]) * (width / own.shape[1] ** 0.5)
            table[r.ids_of(np.arange(r.size))] = own.to(table)


def like(old: Tensor, count: int, spread: float = 1.0) -> Tensor:
    """float32 (count, W) drawn from the normal with the mean of `old` (K, W) and `spread` squared its covariance.

    Through the Cholesky factor of the covariance, (W, W) in float64: 128 MiB at a width of 4,096. What K rows of fewer
    than W dimensions leave undetermined has a millionth of the mean variance.
    """
    mean, covariance = _moments(old)
    jitter = 1e-6 * covariance.diagonal().mean().clamp_min(1e-30)
    factor = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance), dtype=covariance.dtype)).float()
    drawn = [mean.float() + spread * torch.randn(min(AT_ONCE, count - at), len(mean)) @ factor.T
             for at in range(0, count, AT_ONCE)]
    return torch.cat(drawn)


def _moments(old: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (W,) and covariance (W, W) of rows, float64, from a few rows at a time."""
    mean = sum(part.double().sum(0) for part in old.split(AT_ONCE)) / len(old)
    products = (part.float() - mean.float() for part in old.split(AT_ONCE))
    return mean, sum((part.T @ part).double() for part in products) / len(old)


def has_experts(backbone: nn.Module) -> bool:
    """Whether a token meets only some of the weights: a mixture of experts, in transformers' naming."""
    return any(".experts." in name for name, _ in backbone.named_parameters())


def multiplied(backbone: nn.Module) -> Multiplied | None:
    """Weights by what they are multiplied with, adapters among them; None for a mixture of experts.

    Call it after what trains is settled and before ZeRO-3 takes the weights apart. Attention is counted as full: a
    window or a chunk of some layers makes it less.
    """
    if has_experts(backbone):
        return None
    inside = set(backbone.get_output_embeddings().modules())
    linear = [m for m in backbone.modules() if isinstance(m, nn.Linear)]
    head, body = ([m.weight for m in linear if (m in inside) == within] for within in (True, False))
    shape = backbone.config.get_text_config()
    return Multiplied(
        body=sum(w.numel() for w in body), head=sum(w.numel() for w in head),
        frozen_body=sum(w.numel() for w in body if not w.requires_grad),
        frozen_head=sum(w.numel() for w in head if not w.requires_grad),
        layers=shape.num_hidden_layers, width=shape.num_attention_heads * head_width(shape))


KNOWN = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral", "chameleon", "emu3_text_model")
"""Families compared with transformers' own classes in tests; others are tried before they are taken."""


def build_backbone(wanted: config.Backbone, vocab: Vocab, image_in: config.ImageIn, code_vectors: dict[str, Tensor],
                   image_out: config.ImageOut | None = None, found: tuple[nn.Module, nn.Module] | None = None,
                   weights: bool = True):
    """A transformers causal LM with `vocab.rows` rows, all new rows initialised.

    code_vectors  float32 (codes, dim) by codebook name, read where rows start as 'codebook'
    found         what `published` finds at the path of `wanted`, where it was read already
    weights       False: only shapes, for weights that a checkpoint will fill in

    Its `rows_known` says how many rows of its table the published model has trained. Raises ConfigError where it can't
    be trained on packed rows.
    """
    if isinstance(wanted, config.FreshBackbone):
        backbone, known = fresh_backbone(wanted, vocab.rows), 0
    else:
        backbone, whole = found or published(wanted.path, weights)
        old = len(backbone.get_input_embeddings().weight)
        # Many tables end in rows of no id, which markers then take.
        known = old if wanted.rows == "all" or whole.config.model_type in COMPLETE else min(old, vocab.text_size)
        if weights and backbone.config.model_type not in KNOWN:
            try_packed(backbone)
        if vocab.rows > old:
            # Our own initialisation follows; the built-in one needs the mean of all old rows twice.
            backbone.resize_token_embeddings(vocab.rows, mean_resizing=False)
    use_packed_attention(backbone)
    if weights:
        start_rows(backbone, vocab, known, image_in, image_out or config.SharedSoftmax(), code_vectors)
    backbone.rows_known = known
    return backbone


def fresh_backbone(wanted: config.FreshBackbone, rows: int):
    """A transformers causal LM of a stated shape, `rows` of them in its tables, as its own class starts it."""
    import transformers as tf

    kind, head = wanted.family, wanted.width // wanted.heads
    shape = dict(
        vocab_size=rows, hidden_size=wanted.width, num_hidden_layers=wanted.layers, num_attention_heads=wanted.heads,
        num_key_value_heads=wanted.kv_heads, intermediate_size=wanted.mlp, max_position_embeddings=32768,
        tie_word_embeddings=False, use_cache=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    rope = {"rope_type": "default", "rope_theta": wanted.rope_theta}
    if kind != "qwen2":
        shape["head_dim"] = head
    if kind in ("gemma2", "gemma3"):
        shape["query_pre_attn_scalar"] = head
    if kind == "gemma3":
        kind, rope = "gemma3_text", {"full_attention": rope, "sliding_attention": rope}
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
        raise ConfigError(f"{kind} can't be trained on packed rows: its positions, its layers or what it does to its "
                          "logits give two documents in one row other logits than alone; take another backbone")


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
    compiler, found = (("triton", importlib.util.find_spec("triton")) if torch.cuda.is_available()
                       else ("a C++ compiler (g++)", shutil.which("g++")))
    if not found:
        raise ConfigError(f"torch.compile needs {compiler} here; install it, or set compile to False")
    use_packed_attention(backbone, torch.compiler.disable(attend))
    for layer in backbone.base_model.layers:
        for part in layer.children() if recomputed else (layer,):
            part.compile(backend=backend)
