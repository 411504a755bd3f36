"""Photographs, and every published architecture at a size that a test can run."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unimm.config.images import IBQ, Chameleon, Emu3, LlamaGen, MoVQ
from unimm.images.tokenizer import build_tokenizer
from unimm.sample import Codes, Level

SIZES = {"width": 32, "multipliers": (1, 1, 1, 2), "blocks": 1, "image": 64, "fit": "short_side"}
TINY = {
    "chameleon": Chameleon(**SIZES, latent=8, size=96, dim=8),
    "emu3": Emu3(**SIZES, latent=4, size=96, dim=4, attention=(3,)),
    "llamagen": LlamaGen(**SIZES, latent=8, size=96, dim=8, attention=(3,)),
    "movq": MoVQ(**SIZES, latent=4, size=96, dim=4, attention=(3,)),
    "ibq": IBQ(**SIZES, latent=8, size=96, dim=8, attention=(3,)),
}


def whole_photographs() -> list[np.ndarray]:
    """Five real ones, uint8 (256, 256 .. 385, 3): astronaut, chelsea, china, coffee, flower."""
    return [np.array(Image.open(file)) for file in sorted((Path(__file__).parent / "photographs").glob("*.jpg"))]


def photographs() -> list[np.ndarray]:
    """Parts of them, uint8 (160, 160, 3) and (160, 240, 3)."""
    return [np.ascontiguousarray(a[40:200, 60:60 + (160 if n % 2 else 240) - 80 * (a.shape[1] == 256)])
            for n, a in enumerate(whole_photographs())]


def tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [-1, 1]"""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def encode(tokenizer, images: torch.Tensor) -> torch.Tensor:
    """The ids of the last level, int64 (B, P) or (B, P, depth)."""
    return torch.from_numpy(np.stack([c.levels[-1].ids for c in tokenizer.contents(images)])).long().squeeze(-1)


def decode(tokenizer, ids: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """What ids of one level are drawn as, float32 (B, 3, H, W)."""
    return tokenizer.pictures([Codes((Level(row.reshape(len(row), -1), grid),)) for row in ids.numpy()])


def tiny(kind: str):
    """A tokenizer whose random weights are such that photographs have many codes."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TINY[kind]).eval()
    with torch.no_grad():
        z = torch.cat([tokenizer.maps(tensor(image))[0][0].flatten(1).T for image in photographs()])
        tokenizer.quantize.embedding.weight.copy_(spread(z, TINY[kind].size))
    return tokenizer


def spread(z: torch.Tensor, size: int) -> torch.Tensor:
    """`size` of the vectors z (N, C), moved a little."""
    chosen = z[torch.linspace(0, len(z) - 1, size).long()]
    return chosen + 0.05 * z.std() * torch.randn(chosen.shape)
