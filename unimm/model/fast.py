"""Reading on in the fewest operations: the body of a Llama-like language model over a RowCache.

    backbone --fast_body--> FastBody, or the reason why this one runs through its own module

Projections of one input are one tensor, whose memory the module's own parameters then view: nothing is held twice. On a
GPU a step is compiled, and captured as a CUDA graph over static memory.

    N rows   t positions of each   W width   H heads   G of keys and values   D their width   E keys looked at
"""

import importlib.util
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.model.attention_kernels import over_cache
from unimm.model.backbone import KNOWN
from unimm.model.cache import RowCache, sent

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
         "self_attn.q_norm", "self_attn.k_norm")

LONGEST_STEP = 64
"""Positions of a row in what counts as a step, for which a GPU keeps graphs; more is a prompt."""

KEYS_AT_ONCE = 512
"""A graph looks at a multiple of so many keys: the fewer graphs, the more keys that nobody needs."""


class Norm(NamedTuple):
    """A root-mean-square norm, or with `bias` Chameleon's layer norm of each head.

    weight  (W,), or (heads, D) of heads; Gemma's with its 1 added, in float32
    """

    weight: Tensor
    eps: float
    bias: Tensor | None
    scaled: Tensor
    floor: Tensor

    @classmethod
    def of(cls, weight: Tensor, eps: float, bias: Tensor | None = None) -> "Norm":
        width = weight.shape[-1]
        return cls(weight, eps, bias, weight * width ** 0.5, torch.tensor((width * eps) ** 0.5).to(weight))

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return torch.addcmul(self.bias, F.layer_norm(x, self.weight.shape[-1:], eps=self.eps), self.weight)
        if x.dtype == torch.float32 and not x.is_cuda:
            # Half the time of F.rms_norm, which a CPU runs as seven operations: 3.4 instead of 7.0 us up to width 1024.
            return x.div(torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.floor)).mul_(self.scaled)
        return (F.rms_norm(x.to(self.weight.dtype), self.weight.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)


Linear = tuple[Tensor, Tensor | None]
"""Weight (outputs, inputs) and bias."""


class Layer(NamedTuple):
    """One layer's weights. Norms stand before or after attention and MLP; None where the family has none there."""

    qkv: Linear  # of (H + 2 G) D outputs
    out: Linear
    gate_up: Linear
    down: Linear
    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    heads: Norm | None  # of queries and keys, (H + G, D)


@dataclass(frozen=True)
class Form:
    """What all layers share: (H, G, D), a scale and a cap (Gemma 2) of scores, the activation."""

    shape: tuple[int, int, int]
    scale: float
    cap: float | None
    act: Callable[[Tensor], Tensor]


def through(x: Tensor, layer: Layer, form: Form, rope: tuple[Tensor, Tensor], place: tuple[Tensor, ...],
            kept: tuple[Tensor, Tensor], end: int, seen: tuple[int, Tensor | None], static: bool) -> Tensor:
    """x (N t, W) through one layer, which keeps its keys and values (N, G, capacity, D) at `place` and looks at those
    before `end`; `seen` as `RowCache.seen` says it."""
    (h, g, d), (keys, values), (low, mask), (cos, sin) = form.shape, kept, seen, rope
    y = x if layer.before_attention is None else layer.before_attention(x)
    qkv = product(y, *layer.qkv).view(-1, h + 2 * g, d)
    qk, v = qkv[:, :h + g], qkv[:, h + g:]
    if layer.heads is not None:
        qk = layer.heads(qk)
    qk = torch.addcmul(qk * cos, qk.roll(d // 2, -1), sin)
    n, t = len(keys), len(x) // len(keys)
    keys.index_put_(place, qk[:, h:].view(n, t, g, d))
    values.index_put_(place, v.view(n, t, g, d))
    how = written_out if static else attended
    y = how(qk[:, :h].view(n, t, h, d), keys[:, :, low:end], values[:, :, low:end], mask, form)
    x = added(x, y, layer.out, layer.after_attention)
    y = x if layer.before_mlp is None else layer.before_mlp(x)
    gate, up = product(y, *layer.gate_up).chunk(2, -1)
    return added(x, form.act(gate) * up, layer.down, layer.after_mlp)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not few(x, weight):
        return F.linear(x, weight, bias)
    y = (weight @ x.t()).t().contiguous()
    return y if bias is None else y.add_(bias)


def added(x: Tensor, y: Tensor, linear: Linear, after: Norm | None) -> Tensor:
    if linear[1] is None and after is None and not few(y, linear[0]):
        return torch.addmm(x, y, linear[0].t())
    y = product(y, *linear)
    return x + (y if after is None else after(y))


def few(x: Tensor, weight: Tensor) -> bool:
    """Whether weight @ x.T takes a CPU half the time of x @ weight.T: two to four rows on matrices beyond its cache.

    Measured with MKL on an AMD EPYC: 306 instead of 688 us at two rows and 2,304 x 768, but 28 instead of 21 at 768 x
    256; with more rows or wider ones it loses.
    """
    return len(x) > 1 and x.numel() <= 4096 and weight.numel() >= 1 << 19 and x.dtype == torch.float32 and not x.is_cuda


def attended(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """(N t, H D) from queries (N, t, H, D), keys and values (N, G, E, D)."""
    n, t, h, d = q.shape
    if t == 1 and form.cap is None:  # what `over_cache` comes to, with less around it
        q = q.view(n, len(keys[0]), -1, d)
        return F.scaled_dot_product_attention(q, keys, values, mask, scale=form.scale).reshape(n, h * d)
    return over_cache(q.transpose(1, 2), keys, values, (0, mask), form.scale, form.cap).reshape(n * t, h * d)


def written_out(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, form: Form) -> Tensor:
    """`attended` in plain products, of which a compiler makes fewer and faster kernels than torch has under a mask."""
    (n, t, h, d), g = q.shape, keys.shape[1]
    q = q.view(n, t, g, h // g, d).permute(0, 2, 3, 1, 4).reshape(n, g, -1, d)
    scores = (q @ keys.mT).mul(form.scale).view(n, g, h // g, t, -1)
    if form.cap is not None:
        scores = (scores / form.cap).tanh() * form.cap
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
    out = weights.view(n, g, -1, weights.shape[-1]) @ values
    return out.view(n, g, h // g, t, d).permute(0, 3, 1, 2, 4).reshape(n * t, h * d)


class Held:
    """What is kept for one cache, as long as that lives where it is: tables of its length, views, steps."""

    def __init__(self, body: "FastBody", cache: RowCache, like: Tensor):
        h, g, d = body.form.shape
        for n in range(len(body.layers)):
            if n not in cache.layers:
                cache.layers[n] = tuple(like.new_zeros(cache.rows, g, cache.capacity, d) for _ in "kv")
        self.memory = [cache.layers[n] for n in range(len(body.layers))]
        self.ropes = {sliding: table(body.rotary, sliding, cache.capacity, like)
                      for sliding in {window is not None for window in body.windows}}
        self.rows, self.views, self.steps, self.last = (0, 0), [], {}, 0

    def of_rows(self, first: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Every layer's keys and values (n, G, capacity, D) of these rows."""
        if self.rows != (first, n):
            self.rows, rows = (first, n), slice(first, first + n)
            self.views = [(keys[rows], values[rows]) for keys, values in self.memory]
        return self.views


class FastBody:
    """Reads embedded (N, t, W) behind what rows [first, first + N) of a cache hold: the last hidden states (N, t, W).

    Only for inference, under torch.inference_mode or no_grad: norms' weights are taken as they are when it is built.
    """

    def __init__(self, body: nn.Module):
        config, attention = body.config, body.layers[0].self_attn
        self.form = Form((config.num_attention_heads, config.num_key_value_heads, attention.head_dim),
                         attention.scaling, config.attn_logit_softcapping if config.model_type == "gemma2" else None,
                         body.layers[0].mlp.act_fn.forward)
        self.layers = [layer_of(layer, config) for layer in body.layers]
        self.norm = norm_of(body.norm, config)
        self.windows = [window_of(config, n) for n in range(len(self.layers))]
        self.rotary = body.rotary_emb
        self.caches: weakref.WeakKeyDictionary[RowCache, Held] = weakref.WeakKeyDictionary()

    def __call__(self, embedded: Tensor, start: np.ndarray, cache: RowCache, first: int = 0) -> Tensor:
        n, t = embedded.shape[:2]
        held = self.held(cache, embedded)
        again, held.last = t == 1 or t == held.last, t
        if embedded.is_cuda and first == 0 and t <= LONGEST_STEP and again:
            return self.step(n, t, int(start.max()) + t, cache)(embedded, start)
        cache.at(first, start, t)
        seen = {window: cache.seen(window) for window in set(self.windows)}
        return self.read(embedded, cache.position, held.ropes, held.of_rows(first, n), cache.end, seen)

    def held(self, cache: RowCache, like: Tensor) -> Held:
        held = self.caches.get(cache)
        if held is None or held.memory[0] is not cache.layers.get(0):
            held = self.caches[cache] = Held(self, cache, like)
        return held

    def read(self, embedded: Tensor, position: Tensor, ropes: dict, memory: list, end: int, seen: dict,
             run: Callable = through, static: bool = False) -> Tensor:
        """The layers and the last norm, for positions int64 (N, t); `ropes` and `seen` by window."""
        n, t, width = embedded.shape
        ropes = {sliding: F.embedding(position.view(-1, 1), both).chunk(2, -1) for sliding, both in ropes.items()}
        row, head = (torch.arange(k, device=position.device) for k in (n, self.form.shape[1]))
        place = row[:, None, None], head, position[:, :, None]
        x = embedded.reshape(n * t, width)
        for layer, window, kept in zip(self.layers, self.windows, memory, strict=True):
            x = run(x, layer, self.form, ropes[window is not None], place, kept, end, seen[window], static)
        return self.norm(x).view(n, t, width)

    def step(self, n: int, t: int, end: int, cache: RowCache) -> "Step":
        """The forward of static shape that serves n rows which end at `end` or before."""
        held, rows = self.caches[cache], min(1 << (n - 1).bit_length(), cache.rows)
        end = min(-(-end // KEYS_AT_ONCE) * KEYS_AT_ONCE, cache.capacity)
        if (rows, t, end) not in held.steps:
            held.steps[rows, t, end] = Step(self, held, rows, t, end, cache.capacity - t)
        return held.steps[rows, t, end]


class Step:
    """One forward of a fixed shape over fixed memory, which a GPU captures once and then replays.

    Rows beyond those given write at `aside`, the end of cache rows, where nobody looks before writing there.
    """

    def __init__(self, body: FastBody, held: Held, rows: int, t: int, end: int, aside: int):
        weight = body.layers[0].qkv[0]
        self.body, self.ropes, self.memory = body, held.ropes, [(k[:rows], v[:rows]) for k, v in held.memory]
        self.end, self.aside, self.graph = end, aside, None
        self.embedded = weight.new_zeros(rows, t, weight.shape[1])
        self.start = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)

    def __call__(self, embedded: Tensor, start: np.ndarray) -> Tensor:
        n = len(embedded)
        self.embedded[:n] = embedded
        self.start[:n, 0] = sent(start, self.start.device)
        self.start[n:] = self.aside
        if not self.embedded.is_cuda:
            return self.run(through)[:n]
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.hidden[:n].clone()  # the next replay writes over it

    def run(self, how: Callable) -> Tensor:
        position = self.start + torch.arange(self.embedded.shape[1], device=self.start.device)
        back = position[:, None, :, None] - torch.arange(self.end, device=self.start.device)
        seen = {window: (0, back >= 0 if window is None else (back >= 0) & (back < window))
                for window in set(self.body.windows)}
        return self.body.read(self.embedded, position, self.ropes, self.memory, self.end, seen, how, static=True)

    def _capture(self) -> None:
        how = torch.compile(through) if importlib.util.find_spec("triton") else through
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.run(how)  # what is compiled or allocated once may not be captured
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = self.run(how)


def fast_body(backbone: nn.Module) -> FastBody | str:
    """A transformers causal LM's layers as a FastBody, or one sentence on why it runs through its own module.

    The module goes on working: its parameters view the fused ones. Call it once weights, dtype and device are final.
    """
    body = backbone.base_model
    name = f"{body.config.model_type} runs through its own module: "
    if reason := unlike(body):
        return name + reason
    with torch.no_grad():
        made = FastBody(body)
        error = disagreement(made, backbone)
    most = 1e-3 if made.layers[0].qkv[0].dtype == torch.float32 else 5e-2
    return made if error <= most else f"{name}the fast path's hidden states differ from its own by {error:.1%}"


def unlike(body: nn.Module) -> str | None:
    """What this model has that the fast path does not know."""
    kind = body.config.model_type
    if kind not in KNOWN:
        return f"the fast path knows {', '.join(KNOWN)}"
    types = body.rotary_emb.rope_type
    moving = {*(types.values() if isinstance(types, dict) else [types])} - {"default", "linear", "yarn", "llama3"}
    if moving:
        return f"its rotary embedding is {', '.join(sorted(moving))}, whose angles depend on the length"
    known = {f"{part}.{p}" for part in (*LINEAR, *NORMS) for p in ("weight", "bias")}
    strange = {name for layer in body.layers for name, _ in layer.named_parameters()} - known
    if strange:
        return f"its layers have {', '.join(sorted(strange)[:3])}, which the fast path does not know"
    linear = [layer.get_submodule(part) for layer in body.layers for part in LINEAR]
    if any(type(each) is not nn.Linear for each in linear):
        return "its projections are not plain linear layers"
    if len({(p.dtype, p.device) for p in body.parameters()}) > 1:
        return "its weights are of several precisions or on several devices"
    return None


def disagreement(made: FastBody, backbone: nn.Module) -> float:
    """How far hidden states of random ids are from the module's, relative to theirs: rows of two lengths, and steps."""
    table = backbone.get_input_embeddings()
    ids = torch.randint(len(table.weight), (2, 9), generator=torch.Generator().manual_seed(0))
    embedded = table(ids.to(table.weight.device))
    expected = backbone.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    memory = RowCache(2, KEYS_AT_ONCE, embedded.device)
    found = made(embedded[:, :6], np.zeros(2, int), memory)
    pairs = [(found[0], expected[0, :6]), (found[1, :4], expected[1, :4])]
    for step in range(3):
        row, at = np.arange(2), np.array([6, 4]) + step
        pairs.append((made(embedded[row, at][:, None], at, memory)[:, 0], expected[row, at]))
    found, expected = (torch.cat(side).float() for side in zip(*pairs, strict=True))
    return float((found - expected).norm() / expected.norm())


def layer_of(layer: nn.Module, config) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    first, second = (norm_of(norm, config) for norm in (layer.input_layernorm, layer.post_attention_layernorm))
    match config.model_type:
        case "gemma2" | "gemma3_text":
            norms = (first, second, norm_of(layer.pre_feedforward_layernorm, config),
                     norm_of(layer.post_feedforward_layernorm, config))
        case "chameleon" if config.swin_norm:
            norms = (None, first, None, second)
        case _:
            norms = (first, None, second, None)
    return Layer(fused(attention.q_proj, attention.k_proj, attention.v_proj), fused(attention.o_proj),
                 fused(mlp.gate_proj, mlp.up_proj), fused(mlp.down_proj), *norms, heads_norm(attention, config))


def fused(*linear: nn.Linear) -> Linear:
    """Weights and biases of layers that read the same input, each one tensor, which the layers' own then view."""
    def joined(parts: list[nn.Parameter]) -> Tensor:
        whole = torch.cat([p.data for p in parts]) if len(parts) > 1 else parts[0].data
        for p, view in zip(parts, whole.split([len(p) for p in parts]), strict=True):
            p.data = view
        return whole

    return (joined([each.weight for each in linear]),
            None if linear[0].bias is None else joined([each.bias for each in linear]))


def norm_of(norm: nn.Module, config) -> Norm:
    if config.model_type.startswith("gemma"):
        return Norm.of(1 + norm.weight.data.float(), norm.eps)
    return Norm.of(norm.weight.data, norm.variance_epsilon)


def heads_norm(attention: nn.Module, config) -> Norm | None:
    """The norm of queries and keys, laid out head by head."""
    h, g = config.num_attention_heads, config.num_key_value_heads
    match config.model_type:
        case "chameleon":
            both = attention.q_norm, attention.k_norm
            # 1e-5 whatever its module says: the number stands in ChameleonLayerNorm.forward.
            return Norm.of(torch.cat([n.weight.data for n in both]), 1e-5, torch.cat([n.bias.data for n in both]))
        case "qwen3" | "gemma3_text":
            q, k = norm_of(attention.q_norm, config), norm_of(attention.k_norm, config)
            return Norm.of(torch.cat([q.weight.expand(h, -1), k.weight.expand(g, -1)]), q.eps)
    return None


def window_of(config, layer: int) -> int | None:
    """How many keys a position of this layer sees, itself included."""
    match config.model_type:
        case "mistral":
            return config.sliding_window
        case "qwen2" | "qwen3" | "gemma2" | "gemma3_text" if config.layer_types[layer] == "sliding_attention":
            return config.sliding_window
    return None


def table(rotary: nn.Module, sliding: bool, length: int, like: Tensor) -> Tensor:
    """Cosines (length, D) beside sines, those of the first half negative; `sliding` for windows of Gemma 3."""
    match rotary.rope_type:
        case dict() if sliding:
            turns, scale = rotary.sliding_attention_inv_freq, rotary.sliding_attention_attention_scaling
        case dict():
            turns, scale = rotary.full_attention_inv_freq, rotary.full_attention_attention_scaling
        case _:
            turns, scale = rotary.inv_freq, rotary.attention_scaling
    angle = torch.arange(length, device=like.device).float()[:, None] * turns.to(like.device, torch.float32)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.cat([cos, cos, -sin, sin], -1).to(like.dtype)
