"""Weights of a Llama-like language model as `unimm.model.fast` reads them: what differs between the families.

    W width   H heads   G of keys and values   D their width
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.model.backbone import KNOWN

PARTS = (*(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
         "pre_feedforward_layernorm", "post_feedforward_layernorm")
"""All that a layer may hold."""


class Norm(NamedTuple):
    """A root-mean-square norm, or with `bias` Chameleon's layer norm of each head.

    weight          (1, W), or (heads, D) of heads; Gemma's with its 1 added, in float32
    scaled, floor   what float32 on a CPU takes in their place: weight * sqrt(W), sqrt(W eps)
    """

    weight: Tensor
    eps: float
    bias: Tensor | None = None
    scaled: Tensor | None = None
    floor: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.floor is not None:
            # Half the time of F.rms_norm, which a CPU runs as seven operations: 3.4 instead of 7.0 us up to width 1024.
            return x.div(torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.floor)).mul_(self.scaled)
        if self.bias is not None:
            return torch.addcmul(self.bias, F.layer_norm(x, self.weight.shape[-1:], eps=self.eps), self.weight)
        return (F.rms_norm(x.to(self.weight.dtype), self.weight.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)


Linear = tuple[Tensor, Tensor | None, bool]
"""Weight (outputs, inputs), bias, and whether it is large: see `product`."""


class Layer(NamedTuple):
    """One layer's weights. Norms stand before or after attention and MLP; None where the family has none there."""

    qkv: Linear  # of (H + 2 G) D outputs
    out: Linear  # turned, as `added` takes it; so is `down`
    gate_up: Linear
    down: Linear
    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    heads: Norm | None  # of queries and keys, (H + G, D)


def unlike(body: nn.Module) -> str | None:
    """What this model has that the fast path does not know."""
    kind = body.config.model_type
    if kind not in KNOWN:
        return f"the fast path knows {', '.join(KNOWN)}"
    types = body.rotary_emb.rope_type
    if moving := {*(types.values() if isinstance(types, dict) else [types])} - {"default", "linear", "yarn", "llama3"}:
        return f"its rotary embedding is {', '.join(sorted(moving))}, whose angles depend on the length"
    names = {name for layer in body.layers for name, _ in layer.named_parameters()}
    if strange := names - {f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias")}:
        return f"its layers have {', '.join(sorted(strange)[:3])}, which the fast path does not know"
    if len({(p.dtype, p.device) for p in body.parameters()}) > 1:
        return "its weights are of several precisions or on several devices"
    return None


def layer_of(layer: nn.Module, config) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    first, second = (norm_of(config, norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm))
    match config.model_type:
        case "gemma2" | "gemma3_text":
            norms = (first, second, norm_of(config, layer.pre_feedforward_layernorm),
                     norm_of(config, layer.post_feedforward_layernorm))
        case "chameleon" if config.swin_norm:
            norms = (None, first, None, second)
        case _:
            norms = (first, None, second, None)
    heads = None
    if config.model_type == "chameleon":
        q, k = attention.q_norm, attention.k_norm
        # 1e-5 whatever its module says: the number stands in ChameleonLayerNorm.forward.
        heads = Norm(torch.cat([q.weight.data, k.weight.data]), 1e-5, torch.cat([q.bias.data, k.bias.data]))
    elif config.model_type in ("qwen3", "gemma3_text"):
        heads = norm_of(config, attention.q_norm, attention.k_norm,
                        counts=(config.num_attention_heads, config.num_key_value_heads))
    out, down = ((weight.t(), *rest) for weight, *rest in (fused(attention.o_proj), fused(mlp.down_proj)))
    return Layer(fused(attention.q_proj, attention.k_proj, attention.v_proj), out,
                 fused(mlp.gate_proj, mlp.up_proj), down, *norms, heads)


def fused(*linear: nn.Linear) -> Linear:
    """Weights and biases of layers that read the same input, each one tensor, which the layers' own then view."""
    def joined(parts: list[nn.Parameter]) -> Tensor:
        whole = torch.cat([p.data for p in parts]) if len(parts) > 1 else parts[0].data
        for p, view in zip(parts, whole.split([len(p) for p in parts]), strict=True):
            p.data = view
        return whole

    weight = joined([each.weight for each in linear])
    bias = None if linear[0].bias is None else joined([each.bias for each in linear])
    return weight, bias, weight.numel() >= 1 << 19 and weight.dtype == torch.float32 and not weight.is_cuda


def norm_of(config, *norms: nn.Module, counts: tuple[int, ...] = (1,)) -> Norm:
    """A layer's norm; or those of heads below each other, as often as there are heads."""
    gemma = config.model_type.startswith("gemma")
    weight = torch.cat([norm.weight.data.expand(count, -1) for norm, count in zip(norms, counts, strict=True)])
    eps = norms[0].eps if gemma else norms[0].variance_epsilon
    on_cpu = weight.dtype == torch.float32 and not weight.is_cuda
    weight, width = 1 + weight.float() if gemma else weight, weight.shape[1]
    return Norm(weight, eps, None, *((weight * width ** 0.5, torch.tensor((width * eps) ** 0.5)) if on_cpu else ()))


def table(rotary: nn.Module, sliding: bool, length: int, like: Tensor) -> Tensor:
    """Cosines beside sines (length + 1, 2 D), those of the first half negative; the last ones turn nothing.

    sliding   for windows of Gemma 3
    """
    kind = "sliding_attention_" if sliding else "full_attention_"
    own = kind if isinstance(rotary.rope_type, dict) else ""
    turns, scale = getattr(rotary, f"{own}inv_freq"), getattr(rotary, f"{own}attention_scaling")
    angle = torch.arange(length, device=like.device).float()[:, None] * turns.to(like.device, torch.float32)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    none = torch.tensor([1.0, 0.0], device=like.device).repeat_interleave(2 * turns.numel())
    return torch.cat([torch.cat([cos, cos, -sin, sin], -1), none[None]]).to(like.dtype)
