"""Reading on in the fewest operations: the body of a Llama-like language model over a RowCache.

    backbone --fast_body--> FastBody, or the reason why this one runs through its own module

Projections of one input are one tensor, whose memory the module's own parameters then view: nothing is held twice. On a
GPU a step is compiled, and captured as a CUDA graph over static memory.

    N rows   t positions of each   W width   H heads   G of keys and values   D their width   E keys looked at
"""

import importlib.util
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.model.attention import over_cache
from unimm.model.cache import RowCache, sent
from unimm.model.fast_weights import Layer, Norm, layer_of, norm_of, table, unlike

OFTEN = 8
"""Forwards of so many positions, more than one, after which a GPU captures the next."""

KEYS_AT_ONCE = 512
"""A graph looks at a multiple of so many keys: the fewer graphs, the more keys that nobody needs."""


@dataclass(frozen=True)
class Form:
    """What all layers share: (H, G, D), a scale and a cap (Gemma 2) of scores, the activation."""

    shape: tuple[int, int, int]
    scale: float
    cap: float | None
    act: Callable[[Tensor], Tensor]


def through(x: Tensor, layer: Layer, form: Form, rope: tuple[Tensor, Tensor], flat: Tensor, where: Tensor,
            kept: Tensor | None, t: int, end: int, seen: tuple[int, Tensor | None], static: tuple | None) -> Tensor:
    """x (N t, W) through one layer, which looks at the keys and values before `end` that `seen` names.

    rope    cosines and signed sines (N t, H + 2 G, D), which leave values as they are
    flat    memory of all rows' keys and values (2 rows G capacity, D); `where` new ones go, int64 (N t 2 G,)
    kept    the same of the N rows, (2, N, G, capacity, D)
    static  for a graph, which may know its memory under one name alone: the shape of all rows', in place of `kept`
    """
    (h, g, d), (low, mask), (cos, sin) = form.shape, seen, rope
    y = x if layer.before_attention is None else layer.before_attention(x)
    qkv = product(y, *layer.qkv).view(-1, h + 2 * g, d)
    if layer.heads is not None:
        qkv = torch.cat([layer.heads(qkv[:, :h + g]), qkv[:, h + g:]], 1)
    qkv = torch.addcmul(qkv * cos, qkv.roll(d // 2, -1), sin)
    flat.index_copy_(0, where, qkv[:, h:].reshape(-1, d))
    kept = kept if static is None else flat.view(static)[:, :len(x) // t]
    keys, values = kept.narrow(3, low, end - low).unbind(0)
    y = (attended if static is None else written_out)(qkv[:, :h], keys, values, mask, t, form)
    x = added(x, y, *layer.out, layer.after_attention)
    y = x if layer.before_mlp is None else layer.before_mlp(x)
    gate, up = product(y, *layer.gate_up).chunk(2, -1)
    return added(x, form.act(gate) * up, *layer.down, layer.after_mlp)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, large: bool) -> Tensor:
    """weight @ x.T takes a CPU half the time of x @ weight.T for two to four rows on a matrix beyond its cache.

    Measured with MKL on an AMD EPYC: 306 instead of 688 us at two rows and 2,304 x 768, but 28 instead of 21 at 768 x
    256; with more rows or wider ones it loses.
    """
    if large and 1 < len(x) and x.numel() <= 4096:
        y = (weight @ x.t()).t().contiguous()
        return y if bias is None else y.add_(bias)
    return F.linear(x, weight, bias)


def added(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, large: bool, after: Norm | None) -> Tensor:
    """x + y @ weight + bias: weight (inputs, outputs) as a view, which to make costs as much as to add."""
    if bias is None and after is None and not large:
        return torch.addmm(x, y, weight)
    y = product(y, weight.t(), bias, large)
    return x + (y if after is None else after(y))


def attended(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, t: int, form: Form) -> Tensor:
    """(N t, H D) from queries (N t, H, D), keys and values (N, G, E, D)."""
    h, g, d = form.shape
    if t == 1 and form.cap is None:  # what `over_cache` comes to, with less around it
        q = q.view(-1, g, h // g, d)
        return F.scaled_dot_product_attention(q, keys, values, mask, scale=form.scale).reshape(-1, h * d)
    q = q.unflatten(0, (-1, t)).transpose(1, 2)
    return over_cache(q, keys, values, (0, mask), form.scale, form.cap).reshape(-1, h * d)


def written_out(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, t: int, form: Form) -> Tensor:
    """`attended` in plain products, of which a compiler makes fewer and faster kernels than torch has under a mask."""
    h, g, d = form.shape
    q = q.view(-1, t, g, h // g, d).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (q @ keys.mT).mul(form.scale).unflatten(2, (-1, t))
    if form.cap is not None:
        scores = (scores / form.cap).tanh() * form.cap
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights.flatten(2, 3) @ values).unflatten(2, (-1, t)).permute(0, 3, 1, 2, 4).reshape(-1, h * d)


class Held:
    """What is kept for one cache, as long as that lives where it is.

    flat    of each layer, keys beside values of all rows, (2 rows G capacity, D), of which the cache has views
    tables  by whether a layer has a window: cosines beside signed sines (capacity + 1, 2 D); the last turns nothing
    """

    def __init__(self, body: "FastBody", cache: RowCache, like: Tensor):
        h, g, d = body.form.shape
        self.shape, self.flat = (2, cache.rows, g, cache.capacity, d), []
        for layer in range(len(body.layers)):
            both = like.new_zeros(self.shape)
            for new, old in zip(both, cache.layers.get(layer, ())):
                new.copy_(old)
            cache.layers[layer] = tuple(both)
            self.flat.append(both.view(-1, d))
        self.first = cache.layers[0]
        self.tables = {sliding: table(body.rotary, sliding, cache.capacity, like)
                       for sliding in {window is not None for window in body.windows}}
        self.still = torch.arange(h + 2 * g, device=like.device) >= h + g
        self.rows, self.steps, self.times = (0, 0), {}, Counter()

    def take(self, first: int, n: int) -> None:
        """Turn to these rows: `views` (2, n, G, capacity, D) of each layer and the `spots` where they begin."""
        self.rows, rows = (first, n), slice(first, first + n)
        self.views = [flat.view(self.shape)[:, rows] for flat in self.flat]
        self.spots = self.spots_of(rows)

    def spots_of(self, rows: slice) -> Tensor:
        """Where in `flat` keys and values of rows begin, int64 (n, 1, 2 G)."""
        two, every, g, capacity, _ = self.shape
        spots = torch.arange(two * every * g, device=self.still.device).view(two, every, g)[:, rows]
        return spots.transpose(0, 1).flatten(1)[:, None] * capacity


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
        self.norm = norm_of(config, body.norm)
        # How many keys a position of a layer sees, itself included: Mistral's says so in its configuration alone.
        self.windows = [getattr(config if config.model_type == "mistral" else layer.self_attn, "sliding_window", None)
                        for layer in body.layers]
        self.rotary = body.rotary_emb
        compiles = self.layers[0].qkv[0].is_cuda and importlib.util.find_spec("triton")
        self.through = torch.compile(through) if compiles else through
        self.caches: weakref.WeakKeyDictionary[RowCache, Held] = weakref.WeakKeyDictionary()

    def __call__(self, embedded: Tensor, start: np.ndarray, cache: RowCache, first: int = 0) -> Tensor:
        n, t = embedded.shape[:2]
        held = self.caches.get(cache)
        if held is None or held.first is not cache.layers[0]:  # another cache, or one that has moved
            held = self.caches[cache] = Held(self, cache, embedded)
        held.times[t] += 1
        if embedded.is_cuda and first == 0 and (t == 1 or held.times[t] > OFTEN):
            return self.step(held, n, t, int(start.max()) + t)(self, held, embedded, start)
        if held.rows != (first, n):
            held.take(first, n)
        cache.at(first, start, t)
        seen = {window: cache.seen(window) for window in set(self.windows)}
        return self.read(held, embedded, cache.position, held.spots, held.views, cache.end, seen)

    def read(self, held: Held, embedded: Tensor, position: Tensor, spots: Tensor, views: list, end: int, seen: dict,
             static: tuple | None = None) -> Tensor:
        """The layers and the last norm, for positions int64 (N, t); `seen` by window."""
        n, t, width = embedded.shape
        turn = torch.where(held.still, held.shape[3], position.view(-1, 1))
        ropes = {sliding: torch.embedding(both, turn).chunk(2, -1) for sliding, both in held.tables.items()}
        where = (spots + position[:, :, None]).flatten()
        x, run = embedded.reshape(n * t, width), through if static is None else self.through
        for layer, window, flat, kept in zip(self.layers, self.windows, held.flat, views, strict=True):
            x = run(x, layer, self.form, ropes[window is not None], flat, where, kept, t, end, seen[window], static)
        return self.norm(x).view(n, t, width)

    def step(self, held: Held, n: int, t: int, end: int) -> "Step":
        """The forward of static shape that serves n rows which end at `end` or before."""
        _, rows, _, capacity, _ = held.shape
        rows, end = min(1 << (n - 1).bit_length(), rows), min(-(-end // KEYS_AT_ONCE) * KEYS_AT_ONCE, capacity)
        if (rows, t, end) not in held.steps:
            held.steps[rows, t, end] = Step(held, rows, t, end, self.layers[0].qkv[0])
        return held.steps[rows, t, end]


class Step:
    """One forward of a fixed shape over fixed memory, which a GPU captures once and then replays.

    Rows beyond those given write at the end of cache rows, where nobody looks before writing there.
    """

    def __init__(self, held: Held, rows: int, t: int, end: int, weight: Tensor):
        self.end, self.graph, self.spots = end, None, held.spots_of(slice(rows))
        self.embedded = weight.new_zeros(rows, t, weight.shape[1])
        self.start = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)

    def __call__(self, body: FastBody, held: Held, embedded: Tensor, start: np.ndarray) -> Tensor:
        n, t = embedded.shape[:2]
        self.embedded[:n] = embedded
        self.start[:n, 0] = sent(start, self.start.device)
        self.start[n:] = held.shape[3] - t
        if not self.embedded.is_cuda:
            return self.run(body, held)[:n]
        if self.graph is None:
            self._capture(body, held)
        self.graph.replay()
        return self.hidden[:n].clone()  # the next replay writes over it

    def run(self, body: FastBody, held: Held) -> Tensor:
        position = self.start + torch.arange(self.embedded.shape[1], device=self.start.device)
        back = position[:, None, :, None] - torch.arange(self.end, device=self.start.device)
        seen = {window: (0, back >= 0 if window is None else (back >= 0) & (back < window))
                for window in set(body.windows)}
        nowhere = [None] * len(held.flat)
        return body.read(held, self.embedded, position, self.spots, nowhere, self.end, seen, held.shape)

    def _capture(self, body: FastBody, held: Held) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.run(body, held)  # what is compiled or allocated once may not be captured
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = self.run(body, held)


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
