"""TokenFlow-t2i 7B (arXiv:2412.03069): one index addresses a semantic and a pixel codebook.

Files are those of ByteVisionLab/TokenFlow (commit 9812da0): tok/ is tokenflow/tokenizer/, t2i/ is t2i/llava_t2i/.
"""

from recipes.own_data import DRAWN, PAIRS
from unimm.config.images import Adversarial, DualTokenizer, Perceptual
from unimm.config.model import CodeVectors, PretrainedBackbone, PretrainedVision
from unimm.config.quantizers import VQ
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Codebook, ImageLayout, Layout, LevelLayout, PretrainedText

recipe = Recipe(
    name="tokenflow_t2i_7b",
    about="TokenFlow-t2i 7B: draws by one index of two codebooks; its reading is a model of its own there.",
    text=PretrainedText(path="meta-llama/Llama-2-7b-hf", size=32000),  # scripts/train_t2i.sh
    # Published: 9 scales of residuals, 817 codes, each scale at once from the one before (tok/vq_model.py, t2i/model/
    # llava_arch.py). Here the last scale's 16 x 16 alone, code by code.
    # Published: a pyramid of convolutions, 128 to 512 wide, codes learned by gradient, unit vectors, a semantic decoder
    # of 3 layers (tok/vq_model.py). Here the pyramid's last level.
    image_tokenizer=DualTokenizer(
        image=256, downsample=16, width=512, blocks=2, index="shared", semantic=VQ(size=32768, dim=32),  # Table 11
        pixel=VQ(size=32768, dim=8), semantic_weight=1.0, tune=True, l1=0.0,  # w_dis: 3.2; losses: tok/vq_train.py
        losses=(Perceptual(), Adversarial(weight=0.5, after=20_000))),
    # Published: CLIP ViT-B/16, LPIPS of VGG. Here a SigLIP of its width and patch for both.
    features=PretrainedVision(path="google/siglip-base-patch16-256"),
    codebooks=(Codebook(name="visual", size=32768),),  # <vq_token_0> ..: t2i/model/llava_arch.py; first id: not stated
    layout=Layout(  # t2i/dataset/process.py; <img> and </img> are text there, and 128 places are kept for a caption
        write=ImageLayout(begin="<img>", levels=(LevelLayout(space="visual"),), end="</img>", stop="count"),
        sizes=((16, 16),), unconditional="drop", learn="codes"),  # 3.3; --ignore_text_loss True
    special_ids={"<s>": 1, "</s>": 2},  # Llama 2's; <pad> is ours
    backbone=PretrainedBackbone(path="meta-llama/Llama-2-7b-hf"),
    # 40 channels of both vectors through mlp2x_gelu: multimodal_projector/builder.py. Its embeddings of level and place
    # and its norms of queries and keys are left out.
    image_in=CodeVectors(depth=2),
    data={"pairs": PAIRS},
    stages={
        "tokenizer": Reconstruct(  # Table 11, tok/vq_train.py; Adam there
            mix=(DRAWN,), steps=1_000_000, batch=256, optimizer=AdamW(lr=1e-4, betas=(0.9, 0.95)),
            schedule=Schedule(warmup=0.0, anneal=0.0), precision="bf16"),  # fp16 there
        "pretrain": NextToken(  # scripts/train_t2i.sh
            # 2 epochs (4.1) of 60 M images, 16 on each GPU, of which 64 are ours; a row holds about five
            mix=(DRAWN,), steps=117_000, step_tokens=205 * 2048, seq_len=2048,
            optimizer=AdamW(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.1, clip=0.5),  # transformers' default betas
            schedule=Schedule(warmup=0.0427, anneal=0.0),  # 5,000 steps, then constant
            drop_context=0.1, precision="bf16", zero=3, recompute=True),
    },
    sampling=Sampling(  # eval/run_llava_samples.py
        # Top-k and top-p fall from step to step within a scale: [1200, 100, 1] and [0.8, 0.8, 0].
        image=Choice(top_k=1200, top_p=0.8),
        guidance=8.5,  # (1 + t) c - t u, where t grows to 7.5 at the last scale: scripts/run_t2i.sh
        negative="lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
                 "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."),
)
