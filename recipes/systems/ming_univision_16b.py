"""Ming-UniVision 16B-A3B (arXiv:2510.06590): continuous latents, each read through an expander and written by a flow.

Files are those of inclusionAI/Ming-UniVision (commit 3bbdd2f), which holds no training; U/ is mingunivision/. Rates,
batches and steps are not stated there or in the paper; ours.
"""

from dataclasses import replace

from recipes.own_data import CHATS, CHATTED, DRAWN, DRAWN_IN_CHAT, PAIRS, READ, TEXT
from unimm.config.images import Distill, ViTTokenizer
from unimm.config.model import FlowHead, LatentVectors, PretrainedBackbone, PretrainedVision
from unimm.config.quantizers import Unquantized
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Reconstruct
from unimm.config.tokens import Chat, Continuous, ImageLayout, Layout, LevelLayout, Line, PretrainedText
from unimm.config.trains import Trains

RELEASE = "inclusionAI/Ming-UniVision-16B-A3B"
ROWS = NextToken(mix=(CHATTED,), steps=1, step_tokens=256 * 4096, seq_len=4096, drop_context=0.1,  # all ours
                 optimizer=AdamW(lr=1e-4), precision="bf16", zero=3, recompute=True)

recipe = Recipe(
    name="ming_univision_16b", about="Ming-UniVision 16B-A3B: 256 latents of 32 channels an image, read and written.",
    text=PretrainedText(path=RELEASE, size=126464),  # U/config.json
    # mingtok/config/config_mingtok.json, Table 1. Published: 12 layers of 768, 24 causal ones of 1024, 24 of 1024 on
    # four times the tokens, masked patches told by DINOv2 and CLIP. Here all 1024 wide, and a SigLIP tells.
    image_tokenizer=ViTTokenizer(
        image=512, downsample=32, width=1024, layers=12, heads=16, decoder_layers=24, expander=24,
        quantizer=Unquantized(dim=32), losses=(Distill(),), codebook="latent"),
    features=PretrainedVision(path="google/siglip2-so400m-patch16-512"),
    continuous=(Continuous(name="latent", channels=32, placeholder="<imagePatch>"),),
    layout=Layout(  # U/processing_bailingmm.py, U/modeling_bailing_moe.py; what is read has 1,024 latents there
        write=ImageLayout(begin="<image>", end="</image>", levels=(
            LevelLayout(space="latent", shape=Line(length=256)),)),
        sizes=((16, 16),), pixels_per_code=32, bos="<|startoftext|>", eos="<|endoftext|>", pad="<|endoftext|>",
        chat=Chat(system=None, user=("<role>HUMAN</role>", ""), assistant=("<role>ASSISTANT</role>", "<|endoftext|>"),
                  beside_image="\n"),
        unconditional="drop",  # masked out of the attention there, but for what opens the turns
        draw_words="Please generate the corresponding image based on the description. {text}"),  # test_infer_unified.py
    special_ids={"<|startoftext|>": 126080, "<|endoftext|>": 126081, "<role>": 126340, "</role>": 126341,
                 "<imagePatch>": 126346, "<image>": 126347, "</image>": 126348},  # U/tokenizer_config.json
    # Its class, bailing_moe, is none of transformers' own; ablations (5) stand on Qwen2.5 3B, whose class is.
    backbone=PretrainedBackbone(path=RELEASE, rows="all"),
    image_in=LatentVectors(depth=2),  # U/config.json, mlp_depth
    image_out=FlowHead(width=3072, layers=12, steps=16, repeat=4),  # U/modeling_bailing_moe.py's defaults; repeat: ours
    data={"pairs": PAIRS, "chats": CHATS, "text": TEXT}, stages={  # 3.3, with its shares of samples
        "tokenizer": Reconstruct(mix=(DRAWN,), steps=500_000, batch=1024, precision="bf16"),
        "heads": replace(ROWS, mix=(replace(CHATTED, weight=0.3), replace(DRAWN_IN_CHAT, weight=0.7)), steps=300_000,
                         train=Trains(parts=("aligner", "image_output"))),
        "pretrain": replace(ROWS, mix=(  # the semantic decoder, here the tokenizer's expander, learns too there
            replace(CHATTED, weight=0.25), replace(DRAWN_IN_CHAT, weight=0.7),
            replace(READ, weight=0.05)), steps=400_000),
        "sft": replace(ROWS, mix=(  # a second one of 55 % edits follows there: chats whose assistant draws
            replace(CHATTED, weight=0.3), replace(DRAWN_IN_CHAT, weight=0.6), replace(READ, weight=0.1)),
            steps=50_000, optimizer=AdamW(lr=2e-5)),
    },
    sampling=Sampling(image=Choice(), guidance=3.0, image_guidance=1.1, text_length=512),  # U/modeling_bailingmm.py
)
