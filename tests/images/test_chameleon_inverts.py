"""Chameleon's decoder, which transformers lacks: trained for a moment, it draws what the encoder's codes say."""

import torch
from images.published import decode, encode, spread, tensor, whole_photographs

from unimm.config.images import Chameleon
from unimm.images.measure import psnr
from unimm.images.tokenizer import build_tokenizer

SIDE = 16


def tiles() -> torch.Tensor:
    """Every tile of the photographs, float32 (N, 3, 16, 16)."""
    cut = [tensor(image).unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE) for image in whole_photographs()]
    return torch.cat([c.permute(0, 2, 3, 1, 4, 5).flatten(0, 2) for c in cut])


def test_after_a_short_training_it_inverts_the_encoder():
    """On tiles that it was not trained on: from below 10 dB to above 18 dB (measured: 19.8) in 150 steps."""
    torch.manual_seed(0)
    images = tiles()
    unseen, images = images[::16], images[torch.arange(len(images)) % 16 != 0]
    config = Chameleon(width=32, multipliers=(1, 2), blocks=1, image=SIDE, latent=16, size=512, dim=8)
    tokenizer = build_tokenizer(config)
    with torch.no_grad():
        z = torch.cat([tokenizer.maps(some)[0] for some in images.split(256)])
        tokenizer.quantize.embedding.weight.copy_(spread(z.permute(0, 2, 3, 1).flatten(0, 2), 512))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (150 - step) / 75))

    @torch.no_grad()
    def decibels() -> float:
        return psnr(decode(tokenizer, encode(tokenizer, unseen)).clamp(-1, 1) / 2, unseen / 2)

    assert decibels() < 10
    for _ in range(150):
        optimizer.zero_grad()
        tokenizer(images[torch.randint(len(images), (16,))]).loss.backward()
        optimizer.step()
        schedule.step()
    reached = decibels()
    print(f"{reached:.2f} dB")
    assert reached > 18
