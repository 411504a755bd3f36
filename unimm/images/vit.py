"""Tokenizers whose tokens are no grid: patches through a transformer, and patches back from however many tokens.

    pixels --> patches (B, P, width) --Blocks--> z (B, n, dim) --quantizer--> vectors (B, n, dim)
    vectors --enter, Blocks of the expander--> features (B, n, width) <--read-- places (B, P, width) --> pixels

One class, three published ways to the n tokens:

    queries    n learned queries read the patches; causal, each sees those before it (SEED, arXiv:2307.08041, 3.2)
    keep       a selector keeps patches, n varies, a merger gives them what is dropped (LaVIT, arXiv:2309.04669, 3.1)
    neither    the patches are the tokens, continuous ones mostly (MingTok, arXiv:2510.06590)

A token that isn't there, cut off or dropped, is one learned vector to the decoder, so any number of them decodes
in one batch as it does alone (One-D-Piece, arXiv:2501.10064).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import ViTTokenizer
from unimm.config.quantizers import Unquantized
from unimm.images.base import ImageTokenizer, Reconstruction, TokenizerError
from unimm.images.quantize import build_quantizer
from unimm.losses import pixel_errors
from unimm.sample import Codes, Content, Latents, Level


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
    """Square images of one size; `positions` tokens at most. `expand` is MingTok's semantic half."""

    def __init__(self, config: ViTTokenizer):
        super().__init__(config)
        rows, columns = self.grid
        width, patches, self.positions = config.width, rows * columns, config.queries or rows * columns
        self.varies, self.continuous = config.keep < 1, isinstance(config.quantizer, Unquantized)
        self.quantizer = build_quantizer(config.quantizer)

        def blocks(n: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, config.heads) for _ in range(n))

        def vectors(n: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(n, width))

        self.patches = nn.Conv2d(3, width, self.patch, stride=self.patch)
        self.places, self.encoder = vectors(patches), blocks(config.layers)
        self.queries = vectors(config.queries) if config.queries else None
        self.selector = nn.Linear(width, 2) if self.varies else None
        self.merger = Block(width, config.heads) if self.varies else None
        self.latent = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.dim))
        self.enter, self.absent = nn.Linear(self.dim, width), vectors(1)
        # Kept patches are written without a number, so that their codes have to say where they were.
        self.numbers = None if self.varies else vectors(self.positions)
        self.expander, self.canvas, self.decoder = blocks(config.expander), vectors(patches), blocks(
            config.decoder_layers)
        self.memory = nn.LayerNorm(width)
        self.paint = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 3 * self.patch**2), nn.Unflatten(1, self.grid))
        self._lay_out(rows, columns)

    def _lay_out(self, rows: int, columns: int) -> None:
        """Who sees whom, and how well: less by `locality` for each place that it is away."""
        n, patches = self.config.queries, rows * columns
        places, (cells, reach) = homes(patches, rows, columns)[0], homes(self.positions, rows, columns)
        near = [-self.config.locality * ((a[:, None] - b).abs() - reach).clamp_min(0).sum(-1)
                for a in (places, cells) for b in (places, cells)]
        never = float("-inf")
        to_queries = near[3] + torch.full((n, n), never).triu(1) if self.config.causal and n else near[3]
        see = near[0] if not n else torch.cat([
            torch.cat([near[0], torch.full((patches, n), never)], 1), torch.cat([near[2], to_queries], 1)])
        drawn = torch.zeros(patches, self.positions) if self.varies else near[1]
        self.register_buffer("see", see, persistent=False)
        self.register_buffer("draw", torch.cat([drawn, near[0]], 1), persistent=False)
        self.register_buffer("before", torch.full((self.positions,) * 2, never).triu(1), persistent=False)

    def tokens(self, images: Tensor, sample: bool = False) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> what is to be quantized (B, n, dim), and whether each is kept, 0 or 1, (B, n): drawn
        by its probability where `sample`, and then with the gradient of that."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        patches = x.shape[1]
        if self.queries is not None:
            x = torch.cat([x, self.queries.expand(len(x), -1, -1)], 1)
        for block in self.encoder:
            x = block(x, self.see)
        if not self.varies:
            return self.latent(x[:, -self.positions :]), x.new_ones(len(x), self.positions)
        scores = self.selector(x)  # (B, P, 2): to keep, to drop
        keep = F.gumbel_softmax(scores, hard=True)[..., 0] if sample else (scores[..., 0] > scores[..., 1]).to(x.dtype)
        first = F.one_hot((scores[..., 0] - scores[..., 1]).argmax(1), patches)
        keep = torch.where((keep.sum(1, keepdim=True) > 0), keep, keep + first)
        own = torch.eye(patches, dtype=torch.bool, device=x.device)
        absorbed = (own | (keep < 0.5)[:, None]).log().to(x.dtype)[:, None]  # itself and the dropped: 0, else -inf
        return self.latent(self.merger(x, self.see + absorbed)), keep

    def latents(self, images):
        return self.tokens(images)[0].transpose(1, 2)[:, :, None]

    def expand(self, vectors: Tensor, present: Tensor | None = None) -> Tensor:
        """Vectors (B, n, dim), n up to `positions` -> features (B, n, width); the first k of them depend on the first k
        vectors only. present (B, n): 0 where a vector counts as absent."""
        x = self.enter(vectors)
        if present is not None:
            x = self.absent + present[..., None] * (x - self.absent)
        x = x if self.varies else x + self.numbers[: x.shape[1]]
        for block in self.expander:
            x = block(x, self.before[: x.shape[1], : x.shape[1]])
        return x

    def _patches_of(self, features: Tensor) -> Tensor:
        """(B, positions, width) -> (B, P, width)"""
        x, memory = self.canvas.expand(len(features), -1, -1), self.memory(features)
        for block in self.decoder:
            x = block(x, self.draw, memory)
        return x

    def _painted(self, patches: Tensor) -> Tensor:
        return F.pixel_shuffle(self.paint(patches).permute(0, 3, 1, 2), self.patch)

    def drawn(self, vectors):
        """(B, dim, 1, n) -> images; what is missing up to `positions` is absent."""
        b, _, _, n = vectors.shape
        missing = self.positions - n
        present = F.pad(vectors.new_ones(b, n), (0, missing))
        features = self.expand(F.pad(vectors[:, :, 0].transpose(1, 2), (0, 0, 0, missing)), present)
        return self._painted(self._patches_of(features))

    def _on_grid(self, ids, grid=None):
        return self.vectors_of(ids).transpose(1, 2)[:, :, None]

    @torch.no_grad()
    def contents(self, images):
        z, keep = self.tokens(self._checked(images))
        if self.continuous:
            rows = self.quantizer.settled(z.float()).cpu().numpy()
            return [Latents(row[kept]) for row, kept in zip(rows, keep.cpu().numpy() > 0.5)]
        ids = self.quantizer.ids_of(z.transpose(1, 2)[:, :, None]).unflatten(1, (self.positions, -1))
        return [Codes((Level(row[kept]),)) for row, kept in zip(ids.cpu().numpy(), keep.cpu().numpy() > 0.5)]

    def conditions(self, contents):
        """The patches that the pixels are painted from, (B, width, h, w)."""
        given = [c.array if self.continuous else c.levels[0].ids for c in contents]
        rows = torch.from_numpy(np.stack([np.pad(g, ((0, self.positions - len(g)), (0, 0))) for g in given]))
        rows = rows.to(self.device)
        vectors = rows if self.continuous else self.vectors_of(rows.long().squeeze(-1))
        counts = torch.tensor([len(g) for g in given], device=self.device)
        present = torch.arange(self.positions, device=self.device) < counts[:, None]
        dtype = next(self.parameters()).dtype
        patches = self._patches_of(self.expand(vectors.to(dtype), present.to(dtype)))
        return patches.transpose(1, 2).unflatten(2, self.grid)

    def pictures(self, contents):
        return self._painted(self.conditions(contents).flatten(2).transpose(1, 2)).float()

    def check(self, number: int, content: Content) -> tuple[int, int]:
        least = 1 if self.varies or self.config.queries or self.config.drop_tail else self.positions
        counts = f"{least} to {self.positions}" if least < self.positions else f"{least}"
        if self.continuous:
            fits, wanted = isinstance(content, Latents), f"{counts} latents of {self.dim} channels"
            rows = content.array if fits else np.zeros((0, 0))
            fits = rows.shape[1] == self.dim and bool(np.isfinite(rows).all())
        else:
            fits = isinstance(content, Codes) and len(content.levels) == 1
            wanted = f"one level of {counts} codes, {self.quantizer.depth} a position, below {self.size}"
            rows = content.levels[0].ids if fits else np.zeros((0, 0))
            fits = fits and rows.shape[1] == self.quantizer.depth and 0 <= rows.min() and rows.max() < self.size
        if not fits or not least <= len(rows) <= self.positions:
            raise TokenizerError(f"content {number} is {type(content).__name__} of {rows.shape}; this image tokenizer "
                                 f"draws {wanted}")
        return self.config.image, self.config.image

    @property
    def books(self):
        return {} if self.continuous else super().books

    @property
    def channels(self):
        return {self.config.codebook: self.dim} if self.continuous else {}

    def pixel_losses(self, again, images):
        return pixel_errors(again, images, self.config.foreground_weight, self.config.l1)

    def forward(self, images):
        """Where patches are dropped their ids are -1 and their vectors unquantized; with an expander `vectors` are the
        expanded features."""
        z, keep = self.tokens(self._checked(images), sample=self.training)
        chosen = keep > 0.5
        quantized = self.quantizer(z[chosen].T[None, :, None])  # only what is kept
        ids = torch.full((*keep.shape, *quantized.ids.shape[2:]), -1, device=z.device)
        ids[chosen] = quantized.ids[0]
        vectors = z.masked_scatter(chosen[..., None], quantized.vectors[0, :, 0].T)
        features = self.expand(vectors, keep * self._prefixes(keep) if self.training else keep)
        again = self._painted(self._patches_of(features)).float()
        losses = self.pixel_losses(again, images.float()) | {"quantizer": quantized.loss}
        if self.varies:
            losses["rate"] = self.config.keep_weight * (keep.float().mean() - self.config.keep).square()
        return Reconstruction(again, ids, losses, features if self.config.expander else vectors)

    def _prefixes(self, keep: Tensor) -> Tensor:
        """1 (B, n) for what is left of each picture's tokens, of a share `drop_tail` of them a random prefix."""
        b, n = keep.shape
        counts = torch.randint(1, n + 1, (b, 1), device=keep.device)
        whole = torch.rand(b, 1, device=keep.device) >= self.config.drop_tail
        return (whole | (torch.arange(n, device=keep.device) < counts)).to(keep.dtype)
