"""Tokenizers whose tokens are no grid: patches through a transformer, and patches back from however many tokens.

    pixels --> patches (B, P, width) --Blocks--> z (B, n, dim) --quantizer--> vectors (B, n, dim)
    vectors --enter, Blocks of the expander--> features (B, n, width) <--read-- places (B, P, width) --> pixels

One class, three published ways to the n tokens:

    queries    n learned queries read the patches; causal, each sees those before it (SEED, arXiv:2307.08041, 3.2)
    keep       a selector keeps patches, n varies, a merger lets them absorb the others (LaVIT, arXiv:2309.04669, 3.1)
    neither    the patches are the tokens, continuous ones mostly (MingTok, arXiv:2510.06590)

A token that isn't there, cut off or dropped, is one learned vector to the decoder, so any number of them decodes
in one batch as it does alone (One-D-Piece, arXiv:2501.10064).

Kept patches are written one after the other, so a code has to say where its patch was. LaVIT leaves that to 16,384
codes to learn; here a code is one of quantizer.size * P, `what * P + where`: only what is learned, and where is exact.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import ViTTokenizer
from unimm.images.base import ImageTokenizer, arrays
from unimm.images.quantize import build_quantizer
from unimm.sample import Codes, Latents, Level


class Block(nn.Module):
    """x (B, n, width) reads a memory (B, m, width) and itself, then passes an MLP. `see` (..., n, m + n) is added to
    the attention's scores: 0 is seen, -inf is not."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.pair, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, see: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        own = self.before_attention(x)
        others = own if memory is None else torch.cat([memory, own], 1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for y in (self.query(own), *self.pair(others).chunk(2, -1)))
        found = F.scaled_dot_product_attention(q, k, v, None if see is None else see.to(q.dtype))
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


def homes(n: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """n cells, as square as n divides, laid row by row over a grid: their centres (n, 2) in the grid's places, and
    how far they reach from there (2,)."""
    down = max(d for d in range(1, n + 1) if n % d == 0 and d * d <= n)
    each = torch.tensor([rows / down, columns * down / n])
    cells = torch.cartesian_prod(torch.arange(down), torch.arange(n // down))
    return (cells + 0.5) * each - 0.5, (each - 1).clamp_min(0) / 2


class ViTImageTokenizer(ImageTokenizer):
    """Square images of one size; `positions` tokens at most. `expand` is MingTok's semantic decoder."""

    def __init__(self, config: ViTTokenizer):
        super().__init__(config)
        rows, columns = self.grid
        width, patches, self.positions = config.width, rows * columns, config.queries or rows * columns
        self.quantizer = build_quantizer(config.quantizer)
        self.varies = config.keep < 1
        self.wheres = patches if self.varies else 1
        self.counts = 1 if self.varies or config.queries or config.drop_tail else self.positions, self.positions

        def blocks(n: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, config.heads) for _ in range(n))

        def vectors(n: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(n, width))

        self.patches = nn.Conv2d(3, width, self.patch, stride=self.patch)
        self.places, self.encoder = vectors(patches), blocks(config.layers)
        self.queries = vectors(config.queries) if config.queries else None
        self.selector = nn.Linear(width, 2) if self.varies else None
        self.merger = Block(width, config.heads) if self.varies else None
        self.latent = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.quantizer.dim))
        self.enter, self.absent = nn.Linear(self.quantizer.dim, width), vectors(1)
        self.numbers, self.canvas, self.memory = vectors(self.positions), vectors(patches), nn.LayerNorm(width)
        self.expander, self.decoder = blocks(config.expander), blocks(config.decoder_layers)
        self.paint = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 3 * self.patch**2), nn.Unflatten(1, self.grid))
        # Who sees whom, and how well: less by `locality` for each place that it is away.
        n, never = config.queries, float("-inf")
        places, (cells, reach) = homes(patches, rows, columns)[0], homes(self.positions, rows, columns)
        near = [-config.locality * ((a[:, None] - b).abs() - reach).clamp_min(0).sum(-1)
                for a in (places, cells) for b in (places, cells)]
        to_queries = near[3] + torch.full((n, n), never).triu(1) if config.causal and n else near[3]
        see = near[0] if not n else torch.cat([
            torch.cat([near[0], torch.full((patches, n), never)], 1), torch.cat([near[2], to_queries], 1)])
        self.register_buffer("see", see, persistent=False)
        self.register_buffer("draw", torch.cat([near[1], near[0]], 1), persistent=False)
        self.register_buffer("before", torch.full((self.positions,) * 2, never).triu(1), persistent=False)

    def tokens(self, images: Tensor, sample: bool = False) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> what is to be quantized (B, n, dim), and whether each is kept, 0 or 1, (B, n): drawn
        by its probability where `sample`, and then with the gradient of that."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        if self.queries is not None:
            x = torch.cat([x, self.queries.expand(len(x), -1, -1)], 1)
        for block in self.encoder:
            x = block(x, self.see)
        if not self.varies:
            return self.latent(x[:, -self.positions :]), x.new_ones(len(x), self.positions)
        scores = self.selector(x)  # (B, P, 2): to keep, to drop
        keep = F.gumbel_softmax(scores, hard=True)[..., 0] if sample else (scores[..., 0] > scores[..., 1]).to(x.dtype)
        first = F.one_hot((scores[..., 0] - scores[..., 1]).argmax(1), self.wheres)
        keep = torch.where(keep.sum(1, keepdim=True) > 0, keep, keep + first)
        own = torch.eye(self.wheres, dtype=torch.bool, device=x.device)
        absorbed = (own | (keep < 0.5)[:, None]).log().to(x.dtype)[:, None]  # itself and the dropped: 0, else -inf
        return self.latent(self.merger(x, self.see + absorbed)), keep

    def expand(self, latents):
        """With an expander (B, n, dim) -> (B, n, width), n up to `positions`: the first k depend on no later latent."""
        return self.features(latents) if self.config.expander else latents

    def features(self, vectors: Tensor, present: Tensor | None = None) -> Tensor:
        """What the decoder reads: quantized vectors (B, n, dim) -> (B, n, width). present (B, n): 0 where one counts as
        absent."""
        x = self.enter(vectors)
        if present is not None:
            x = self.absent + present[..., None] * (x - self.absent)
        x = x + self.numbers[: x.shape[1]]
        for block in self.expander:
            x = block(x, self.before[: x.shape[1], : x.shape[1]])
        return x

    def _patches_of(self, features: Tensor) -> Tensor:
        """(B, positions, width) -> what the pixels are painted from, (B, width, h, w)"""
        x, memory = self.canvas.expand(len(features), -1, -1), self.memory(features)
        for block in self.decoder:
            x = block(x, self.draw, memory)
        return x.mT.unflatten(2, self.grid)

    def drawn(self, vectors):
        """Of what `conditions` gives."""
        return F.pixel_shuffle(self.paint(vectors.flatten(2).mT).permute(0, 3, 1, 2), self.patch)

    def vectors_of(self, ids, level=-1):
        what = self.quantizer.codes_to_vectors(ids // self.wheres)
        return torch.cat([what, F.one_hot(ids % self.wheres, self.wheres)], -1) if self.varies else what

    @property
    def books(self):
        return {name: (size * self.wheres, depth) for name, (size, depth) in super().books.items()}

    @property
    def dim(self):
        return self.config.width if self.config.expander else self.quantizer.dim + self.wheres * self.varies

    @torch.no_grad()
    def contents(self, images):
        z, keep = self.tokens(self._checked(images))
        rows = self.quantizer.ids_of(z.mT[:, :, None]).reshape(*z.shape[:2], -1).cpu().numpy()
        if not self.quantizer.depth:
            return [Latents(row) for row in rows]
        rows = rows * self.wheres + np.arange(self.positions)[:, None] % self.wheres
        return [Codes((Level(row[some]),)) for row, some in zip(rows, (keep > 0.5).cpu().numpy())]

    def conditions(self, contents):
        """What is missing up to `positions` is absent."""
        given = [torch.from_numpy(arrays(content)[0]) for content in contents]
        rows = given[0].new_zeros(len(given), self.positions, given[0].shape[1])
        present = torch.zeros(rows.shape[:2])
        for i, codes in enumerate(given):
            slots = codes[:, 0].long() % self.wheres if self.varies else torch.arange(len(codes))
            rows[i, slots], present[i, slots] = codes, 1.0
        rows = rows.squeeze(-1) // self.wheres if self.quantizer.depth == 1 else rows
        vectors, to = self.quantizer.codes_to_vectors(rows.to(self.device)), next(self.parameters())
        return self._patches_of(self.features(vectors.to(to), present.to(to)))

    def forward(self, images):
        """Where patches are dropped their ids are -1 and their vectors 0."""
        z, keep = self.tokens(self._checked(images), sample=self.training)
        chosen = keep > 0.5
        quantized = self.quantizer(z[chosen].T[None, :, None])  # only what is kept
        ids = quantized.ids
        if ids is not None:
            places = (torch.arange(keep.shape[1], device=z.device) % self.wheres).expand_as(chosen)[chosen]
            ids = torch.full((*keep.shape, *ids.shape[2:]), -1, device=z.device)
            ids[chosen] = quantized.ids[0] * self.wheres + places.view(-1, *[1] * (ids.ndim - 2))
        vectors = z.masked_scatter(chosen[..., None], quantized.vectors[0, :, 0].T)
        present = keep
        if self.training:  # of a share `drop_tail` of the pictures a random prefix of the tokens is left
            left = torch.randint(1, keep.shape[1] + 1, (len(z), 1), device=z.device)
            whole = torch.rand(len(z), 1, device=z.device) >= self.config.drop_tail
            present = keep * (whole | (torch.arange(keep.shape[1], device=z.device) < left))
        drawn_from, losses = self._patches_of(self.features(vectors, present)), {"quantizer": quantized.loss}
        if self.varies:
            losses["rate"] = self.config.keep_weight * (keep.float().mean() - self.config.keep).square()
            where = torch.eye(self.wheres, device=z.device, dtype=z.dtype).expand(len(z), -1, -1)
            vectors = torch.cat([vectors, where], -1) * keep[..., None]
        return self.rebuilt(images, drawn_from, ids, vectors, losses)
