"""FQGAN and its generator FAR-B (arXiv:2411.16681): two codes a position, the second predicted given the first.

Files are those of showlab/FQGAN (commit dc34256). Published: ImageNet's classes as single tokens, without text; here
a class is its name, a caption of data of one's own.
"""

from recipes.own_data import DRAWN, PAIRS
from unimm.config.images import Adversarial, ConvTokenizer, Distill, Perceptual
from unimm.config.model import CodeVectors, DepthHead, FreshBackbone, PretrainedVision
from unimm.config.quantizers import VQ, Product
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Codebook, ImageLayout, Layout, LevelLayout

CONSTANT = Schedule(warmup=0.0, anneal=0.0)

recipe = Recipe(
    name="fqgan",
    about="FQGAN dual, x16, and FAR-B: 2 x 16,384 codes a position, a depth transformer to write them.",
    # vq_train_dual.py, train_fqgan_dual.sh, 4.1. Published: LlamaGen's pyramid of convolutions (128 to 512 wide), an
    # adapter of 6 transformer layers for each part, unit codes learned by gradient with an entropy loss (0.03). Here
    # convolutions of the pyramid's last width, and moving averages.
    image_tokenizer=ConvTokenizer(
        image=256, downsample=16, width=512, blocks=2, l1=0.0,
        quantizer=Product(of=VQ(size=16384, dim=8, commitment=0.25), parts=2, disentangle=0.1),
        # Published: the second part's codes against openai/clip-vit-large-patch14, by contrast; LPIPS of VGG. Here all
        # codes against a SigLIP as wide, by cosine; it measures too.
        losses=(Perceptual(), Adversarial(weight=0.5, after=20_000), Distill(weight=0.5))),
    features=PretrainedVision(path="google/siglip-large-patch16-256"),
    codebooks=(Codebook(name="visual", size=16384, depth=2, shared=False),),
    layout=Layout(write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>", stop="count"),
                  sizes=((16, 16),), unconditional="drop", learn="codes"),  # drop: a class of its own there
    # FAR-B, autoregressive/models/far_dual.py; 2816 is LlamaGen's multiple of 256. Places are two-dimensional there.
    backbone=FreshBackbone(family="llama", width=1024, layers=24, heads=16, kv_heads=16, mlp=2816),
    image_in=CodeVectors(depth=1),  # published: tables of its own, joined by one linear layer; here the tokenizer's
    image_out=DepthHead(width=1024, layers=3, heads=16),
    data={"pairs": PAIRS},
    stages={
        "tokenizer": Reconstruct(mix=(DRAWN,), steps=200_000, batch=256, optimizer=AdamW(lr=2e-4, betas=(0.9, 0.95)),
                                 schedule=CONSTANT, precision="bf16"),  # 40 epochs; Adam there
        "pretrain": NextToken(  # 4.1, train_far_dual.sh: 300 epochs of batches of 256
            mix=(DRAWN,), steps=1_500_000, step_tokens=256 * 320, seq_len=320, drop_context=0.1,
            optimizer=AdamW(lr=2e-4, betas=(0.9, 0.95), weight_decay=0.05), schedule=CONSTANT, precision="bf16"),
    },
    sampling=Sampling(image=Choice(), guidance=2.0),  # eval_far.sh
)
