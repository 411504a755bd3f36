"""The VQGAN that the published tokenizers vary (Esser et al. 2021): a pyramid of convolutions around a codebook.

    image (B, 3, H, W) --Encoder, quant_conv--> z (B, dim, h, w) --quantize--> vectors (B, dim, h, w)
                       <--Decoder, post_quant_conv--

Encoder and decoder are those of diffusers; `unimm.images.released` says how the releases name them. Sizes, in
`unimm.config.images`, are the releases' own:

    Chameleon  Chameleon Team 2024; also Anole's, Liquid's, Lumina-mGPT's. transformers' ChameleonVQVAEConfig, made from
               the release's vqgan.yaml, which itself could not be seen: 128 channels times 1 1 2 2 4, 2 blocks, no
               attention but the middle's, 8,192 codes of 256. transformers leaves the decoder out
               (models/chameleon/convert_chameleon_weights_to_hf.py: "we dont do image generation yet")
    LlamaGen   VQ-16 of Sun et al. 2024, which Janus and Janus-Pro use: FoundationVision/LlamaGen,
               tokenizer/tokenizer_image/vq_model.py
    MoVQ       MoVQGAN by SBER (Zheng et al. 2022; Kandinsky's), the decoder's norms reading the codes' vectors:
               ai-forever/MoVQGAN, configs/movqgan_270M.yaml (width 256, 2 blocks); the 67M has width=128, the 102M
               width=128, blocks=4 (movqgan/__init__.py). attn_resolutions [32] of 256 pixels is level 3
    IBQ        TencentARC/SEED-Voken, configs/IBQ/gpu/imagenet_ibqgan_16384.yaml and pretrain_ibqgan_262144.yaml (128
               channels times 1 1 2 2 4, 4 blocks, attention at 16 of 256 pixels, which is level 4, codes of 256).
               Emu3.5's is the same class; its 131,072 codes, 16 pixels to a code and the multipliers were found, its
               width, blocks, attention and dim are taken to be SEED-Voken's: its config.yaml could not be seen

Emu3-VisionTokenizer (Wang et al. 2024): MoVQ's layers on each frame, causal convolutions over time around the codes.

    frames (B, T, 3, H, W) --Encoder--> (B T) grids --time: T / 4--> quant_conv --> ids (B, T / 4, h, w)

An image is a video of `frames` (4) equal frames, and what is decoded of it is the first of the four. Equal frames
have equal grids, so each is computed once where the release computes four.

BAAI/Emu3-VisionTokenizer, modeling_emu3visionvq.py (read in copies; baaivision/Emu3 holds none). Sizes: transformers'
Emu3VQVAEConfig. BatchNorm's averages are the release's, also in training.
"""

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn
from transformers.models.emu3 import modeling_emu3 as emu3

from unimm.config.images import IBQ, Chameleon, Emu3, LlamaGen, MoVQ, Published
from unimm.config.quantizers import IndexBackprop
from unimm.images.base import ImageTokenizer, TokenizerError
from unimm.images.quantize import Codebook, IndexBackpropagation, Quantizer, UnitCodebook


class VQGAN(ImageTokenizer):
    """Encoder, codebook, decoder.

    Trains by squared error and the codebook's loss, without the releases' perceptual and adversarial ones.
    """

    any_size = True

    def __init__(self, config: Published):
        super().__init__(config)
        self.spatial = isinstance(config, MoVQ | Emu3)
        self.draws = not isinstance(config, Chameleon) or config.decoder
        attention = ["Attn" if n in config.attention else "" for n in range(len(config.multipliers))]
        pyramid = {"block_out_channels": [config.width * m for m in config.multipliers],
                   "layers_per_block": config.blocks}
        self.encoder = Encoder(3, config.latent, [f"{attn}DownEncoderBlock2D" for attn in attention], double_z=False,
                               **pyramid)
        codebook = {LlamaGen: UnitCodebook, IBQ: IndexBackpropagation}.get(type(config), Codebook)
        self.quantize: Quantizer = codebook(IndexBackprop(size=config.size, dim=config.dim, entropy_weight=0.0))
        self.quant_conv = nn.Conv2d(config.latent, config.dim, 1)
        self.post_quant_conv = nn.Conv2d(config.dim, config.latent, 1)
        self.decoder = Decoder(config.latent, 3, [f"{attn}UpDecoderBlock2D" for attn in attention[::-1]],
                               norm_type="spatial" if self.spatial else "group", **pyramid) if self.draws else None

    @property
    def quantizer(self) -> Quantizer:
        """By the name that it has elsewhere; `quantize` is the releases'."""
        return self.quantize

    def maps(self, images: Tensor) -> list[Tensor]:
        return [self.quant_conv(self.encoder(images))]

    def drawn(self, vectors: Tensor) -> Tensor:
        if self.decoder is None:
            raise TokenizerError("this image tokenizer was loaded without a decoder and can't draw; "
                                 "give weights that have one, and decoder=True")
        return self.decoder(self.post_quant_conv(vectors), vectors if self.spatial else None)


class FrozenBatchNorm(nn.BatchNorm3d):
    """Always by the averages it came with: a batch of a few images would spoil them."""

    def train(self, mode: bool = True):
        return super().train(False)


def _add_time(part: nn.Module, config: Emu3, conv: type[nn.Module]) -> None:
    """Layers over (time, rows, columns), each place seeing two earlier frames and none later."""
    part.time_conv = nn.ModuleList(conv(config.latent, config.latent) for _ in range(config.frames.bit_length() - 1))
    part.time_res_stack = nn.Sequential(*(emu3.Emu3VQVAETemporalResnetBlock(config.latent, config.latent)
                                          for _ in range(config.blocks)))
    for block in part.time_res_stack:
        block.norm1, block.norm2 = FrozenBatchNorm(config.latent), FrozenBatchNorm(config.latent)


class Emu3Tokenizer(VQGAN):
    def __init__(self, config: Emu3):
        super().__init__(config)
        _add_time(self.encoder, config, emu3.Emu3VQVAETemporalDownsample)
        _add_time(self.decoder, config, emu3.Emu3VQVAETemporalUpsample)
        self.quant_conv = emu3.Emu3VQVAEConv3d(config.latent, config.dim, (3, 1, 1), (1, 1, 1))
        self.post_quant_conv = emu3.Emu3VQVAEConv3d(config.dim, config.latent, (3, 1, 1), (1, 1, 1))

    def maps(self, images: Tensor) -> list[Tensor]:
        x = self.encoder(images)[:, :, None].expand(-1, -1, self.config.frames, -1, -1)
        for conv in self.encoder.time_conv:
            x = F.silu(conv(x))  # (B, latent, T, h, w) -> (B, latent, T / 2, h, w)
        return [self.quant_conv(self.encoder.time_res_stack(x))[:, :, 0]]

    def drawn(self, vectors: Tensor) -> Tensor:
        """The first frame of each video of `frames`."""
        vectors = vectors[:, :, None]
        x = self.decoder.time_res_stack(torch.cat([self.post_quant_conv(vectors), vectors]))
        for conv in self.decoder.time_conv:
            x = F.silu(conv(x))
        return self.decoder(*x[:, :, 0].chunk(2))
