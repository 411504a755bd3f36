"""VILA-U 7B (arXiv:2409.04429): four residual codes a position, read as the sum of their vectors.

Files are those of mit-han-lab/vila-u (commit 096623c): V/ is vila_u/, R/ is its vision tower, rqvaesigliptransformer/.
"""

from dataclasses import replace

from recipes.own_data import CAPTIONED, CHATS, CHATTED, DRAWN, DRAWN_IN_CHAT, PAIRS, READ, TEXT
from unimm.config.images import Adversarial, Contrastive, Perceptual, ViTTokenizer
from unimm.config.model import CodeVectors, DepthHead, PretrainedBackbone, PretrainedVision
from unimm.config.quantizers import VQ, Residual
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Chat, Codebook, ImageLayout, Layout, LevelLayout, Line, PretrainedText

PREFACE = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
           "detailed, and polite answers to the user's questions.")  # V/conversation.py, conv_vicuna_v1
ROWS = NextToken(  # scripts/train/pretrain.sh, sft.sh: batches of 512, here in rows that hold about 25
    mix=(CHATTED,), steps=1, step_tokens=20 * 8192, seq_len=8192, precision="bf16", zero=2, recompute=True,
    drop_context=0.1,  # no code that drops captions was found; ours
    schedule=Schedule(warmup=0.03, anneal=0.97, shape="cosine"))

recipe = Recipe(
    name="vila_u_7b", about="VILA-U 7B: 256 positions of four residual codes, aligned with text.",
    text=PretrainedText(path="meta-llama/Llama-2-7b-hf", size=32000),
    # Published: SigLIP's encoder up to its last layer but one (R/rqvaesiglip/modeling_rqvaesiglip.py), trained on
    # against its frozen text tower, with RQ-VAE's convolutions as decoder. Here a fresh one of that size, and as many
    # layers back, with a text tower of its own. Weights of the losses are RQ-VAE's there and not stated; ours.
    image_tokenizer=ViTTokenizer(
        image=256, downsample=16, width=1024, layers=23, heads=16, decoder_layers=23,
        quantizer=Residual(of=VQ(size=16384, dim=1024, decay=0.99, commitment=0.25), depth=4),  # 4.1
        losses=(Contrastive(), Perceptual(), Adversarial())),
    features=PretrainedVision(path="google/siglip-large-patch16-256"),  # what Perceptual looks through; 4.1
    codebooks=(Codebook(name="visual", size=16384, depth=4, shared=False),),
    layout=Layout(
        write=ImageLayout(begin="<im_start>", levels=(LevelLayout(space="visual", shape=Line(length=256)),),
                          end="<im_end>", stop="count"),
        sizes=((16, 16),), pad="<unk>", unconditional="replace", replacement=f"{PREFACE} USER:  ASSISTANT:",
        # V/utils/tokenizer.py; a space stands before a drawn image too there
        chat=Chat(system=("", " "), user=("USER: ", " "), assistant=("ASSISTANT:", "</s>"), lead=" ", preface=PREFACE,
                  draw_preface=PREFACE, beside_image="\n")),
    special_ids={"<unk>": 0, "<s>": 1, "</s>": 2},  # Llama 2's; markers follow, as V/vila_u_arch.py adds them
    backbone=PretrainedBackbone(path="meta-llama/Llama-2-7b-hf"),
    image_in=CodeVectors(depth=2),  # mlp2x_gelu: V/model/multimodal_projector/base_projector.py
    image_out=DepthHead(width=2560, layers=6, heads=40),  # R/rqtransformer/configuration_rqtransformer.py's defaults
    data={"pairs": PAIRS, "text": TEXT, "chats": CHATS},
    stages={
        "tokenizer": Reconstruct(mix=(DRAWN,), steps=500_000, batch=512, optimizer=AdamW(lr=1e-4),  # ours, but ~512
                                 precision="bf16"),
        "pretrain": replace(  # 4.1: one epoch of 1 M, 6 M interleaved (here text), 15 M; 1 M videos are left out
            ROWS, mix=(CAPTIONED, replace(READ, weight=6), replace(DRAWN_IN_CHAT, weight=15)), steps=43_000,
            optimizer=AdamW(lr=5e-5, betas=(0.9, 0.999))),
        "sft": replace(ROWS, mix=(CHATTED, DRAWN_IN_CHAT), steps=10_000,  # not stated; ours
                       optimizer=AdamW(lr=1e-4, betas=(0.9, 0.999))),
    },
    # R/rqtransformer/modeling_rqtransformer.py, 5.3; inference.py
    sampling=Sampling(image=Choice(top_k=900, top_p=0.96), text=Choice(temperature=0.9, top_p=0.6), guidance=3.0),
)
