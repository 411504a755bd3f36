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
"""

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from unimm.config.images import IBQ, Chameleon, Emu3, LlamaGen, MoVQ, Published
from unimm.images.base import ImageTokenizer, TokenizerError
from unimm.images.quantize import Codebook, IndexBackpropagation, UnitCodebook
from unimm.images.quantizer import Quantizer


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
        self.quantize: Quantizer = codebook(config.size, config.dim)
        self.quant_conv = nn.Conv2d(config.latent, config.dim, 1)
        self.post_quant_conv = nn.Conv2d(config.dim, config.latent, 1)
        self.decoder = Decoder(config.latent, 3, [f"{attn}UpDecoderBlock2D" for attn in attention[::-1]],
                               norm_type="spatial" if self.spatial else "group", **pyramid) if self.draws else None

    @property
    def quantizer(self) -> Quantizer:
        """By the name that it has elsewhere; `quantize` is the releases'."""
        return self.quantize

    def latents(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def drawn(self, vectors: Tensor) -> Tensor:
        if self.decoder is None:
            raise TokenizerError("this image tokenizer was loaded without a decoder and can't draw; "
                                 "give weights that have one, and decoder=True")
        return self.decoder(self.post_quant_conv(vectors), vectors if self.spatial else None)
