"""stand-in until the images branch lands"""
import hashlib, json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
import numpy as np, torch
from torch import nn
import torch.nn.functional as F
from unimm.config.images import ConvTokenizer
from unimm.images.quantize import build_quantizer
from unimm.sample import Codes


class Reconstruction(NamedTuple):
    images: torch.Tensor
    ids: torch.Tensor
    losses: dict


class Res(nn.Module):
    def __init__(self, c, k):
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c, k, padding=k // 2), nn.Conv2d(c, c, k, padding=k // 2)
        nn.init.zeros_(self.b.weight)
    def forward(self, x):
        return x + self.b(F.silu(self.a(F.silu(x))))


class ImageTokenizer(nn.Module):
    def __init__(self, c: ConvTokenizer):
        super().__init__()
        self.config = c
        w, k = c.width, c.encoder_kernel
        self.quantizer = build_quantizer(c.quantizer)
        d = self.quantizer.dim
        self.encoder = nn.Sequential(nn.Conv2d(3, w, 4, 4), Res(w, k), nn.Conv2d(w, 2 * w, 2, 2), Res(2 * w, k), nn.SiLU(), nn.Conv2d(2 * w, d, 1))
        self.decoder = nn.Sequential(nn.Conv2d(d, 2 * w, 3, padding=1), Res(2 * w, 3), nn.ConvTranspose2d(2 * w, w, 2, 2), Res(w, 3), nn.SiLU(), nn.ConvTranspose2d(w, 3, 4, 4))
        self.size = self.quantizer.size
        self.grid = (c.image // c.downsample,) * 2
    def encode(self, images):
        return self.quantizer.ids_of(self.encoder(images))
    def decode(self, ids):
        v = self.quantizer.codes_to_vectors(ids)
        return self.decoder(v.view(len(ids), *self.grid, -1).permute(0, 3, 1, 2))
    def code_vectors(self):
        return self.quantizer.codes_to_vectors(torch.arange(self.size))
    def forward(self, images):
        q = self.quantizer(self.encoder(images))
        out = self.decoder(q.vectors)
        fore = (images - images[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05
        weight = 1 + (self.config.foreground_weight - 1) * fore.float()
        return Reconstruction(out, q.ids, {"pixels": (weight * ((out - images) ** 2 + self.config.l1 * (out - images).abs())).mean(), "quantizer": q.loss})


def build_tokenizer(config):
    return ImageTokenizer(config)


def _x(arrays):
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def to_codes(tokenizer, arrays):
    if not arrays:
        return []
    tokenizer.eval()
    return [Codes.of_grid(i.reshape(tokenizer.grid).numpy()) for i in tokenizer.encode(_x(arrays))]


@torch.no_grad()
def to_pixels(tokenizer, codes):
    tokenizer.eval()
    ids = torch.from_numpy(np.stack([c.levels[0].ids[:, 0] for c in codes])).long()
    return list(((tokenizer.decode(ids).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def fingerprint(tokenizer):
    h = hashlib.sha256(json.dumps(asdict(tokenizer.config)).encode())
    for n, p in sorted(tokenizer.state_dict().items()):
        h.update(p.numpy().tobytes())
    return h.hexdigest()


def save_tokenizer(tokenizer, folder):
    folder.mkdir(exist_ok=True)
    torch.save((tokenizer.config, tokenizer.state_dict()), folder / "w.pt")
    (folder / "config.json").write_text("{}")


def load_tokenizer(folder):
    c, s = torch.load(Path(folder) / "w.pt", weights_only=False)
    t = ImageTokenizer(c)
    t.load_state_dict(s)
    return t
