"""ILLUME+'s pictures: its tokenizer DualViTok, the decoder behind it, and how both were trained.

Files are those of illume-unified-mllm/ILLUME_plus (commit 51de69d), vision_tokenizer/.
"""

from recipes.own_data import DRAWN
from unimm.config.images import Adversarial, DualTokenizer, Perceptual
from unimm.config.model import FlowDecoder, FreshVision
from unimm.config.quantizers import VQ
from unimm.config.stages import AdamW, Contrast, Detokenize, Reconstruct, Schedule

CONSTANT = Schedule(warmup=0.0, anneal=0.0)

# tokenizer/configs/example/dualvitok/. Published: MoVQGAN's pyramids, SimVQ, a tenth of the codes of a tenth of the
# pictures at random. Here residual convolutions of a pyramid's last width, and moving averages.
TOKENIZER = DualTokenizer(
    image=512, downsample=16, width=512, blocks=2, index="separate", semantic=VQ(size=32768, dim=32), l1=0.0,
    pixel=VQ(size=98304, dim=32), losses=(Perceptual(), Adversarial(weight=0.5, after=20_000)))

# Published: Emova-ollm/qwen2vit600m, of this width and so many pixels a token. Here a fresh one; 32 layers are ours.
FEATURES = FreshVision(patch=28, width=1280, layers=32, heads=16)

# tokenizer/sdxl_decoder_pipe.py: SDXL's UNet, twice the size, 50 steps. Here two of its resolutions, not guided.
DECODER = FlowDecoder(scale=2, patch=8, width=320, layers=2, steps=50)

STAGES = {  # the paper's 3.4 and Table 1, all its sizes in one stage
    "vision": Contrast(mix=(DRAWN,), steps=100_000, batch=4096, precision="bf16"),  # ours
    "tokenizer": Reconstruct(mix=(DRAWN,), steps=398_000, batch=256, optimizer=AdamW(lr=1e-4), schedule=CONSTANT,
                             precision="bf16"),
    "detokenizer": Detokenize(mix=(DRAWN,), steps=265_000, batch=128, optimizer=AdamW(lr=2e-5), schedule=CONSTANT,
                              precision="bf16"),
}
