"""Lumina-mGPT 7B at 768 (arXiv:2408.02657): Chameleon's weights, images of any shape.

Files are those of Alpha-VLLM/Lumina-mGPT (commit 104abe4) under lumina_mgpt.
"""

from dataclasses import replace

from recipes.lumina_sizes import SIZES_768
from recipes.own_data import CHATS, CHATTED, DRAWN_IN_CHAT, PAIRS
from recipes.systems import chameleon_7b
from unimm.config.model import PretrainedBackbone
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import Chat, ImageLayout, LevelLayout, PretrainedText

recipe = replace(
    chameleon_7b.recipe,
    name="lumina_mgpt_7b_768",
    about="Lumina-mGPT 7B: Chameleon with a size before and an end after every row of codes.",
    text=PretrainedText(path="Alpha-VLLM/Lumina-mGPT-7B-768", size=65536),
    image_tokenizer=replace(chameleon_7b.recipe.image_tokenizer, image=768, fit="sizes", filter="bicubic"),
    layout=replace(
        chameleon_7b.recipe.layout,
        # data/item_processor.py, process_image: <reserved{8800 + n}> for n patches of 32 pixels, height, then width.
        write=ImageLayout(
            begin="<racm3:break><reserved088{h2:02d}><reserved088{w2:02d}>", end="<eoss>",
            levels=(LevelLayout(space="visual", row_end="<reserved08799>", row_ends="after"),)),
        sizes=SIZES_768,
        # data/convertsation.py: every turn ends in <reserved08706>, and nothing follows the last.
        chat=Chat(system=None, user=("", "<reserved08706>"), assistant=("", "<reserved08706>"), eos=False),
        draw_words="Generate an image of {W}x{H} according to the following prompt:\n{text}",  # README, inference
        unconditional="bare"),  # inference_solver.py, get_unconditional_logits: from the image's beginning on
    backbone=PretrainedBackbone(path="Alpha-VLLM/Lumina-mGPT-7B-768"),
    data={"pairs": PAIRS, "chats": CHATS},
    stages={  # exps/7B.sh; its dropout of 0.05 is left out
        "sft": NextToken(
            mix=(DRAWN_IN_CHAT, CHATTED), steps=10_000,  # not stated; ours: 2 epochs of data that are not public
            step_tokens=64 * 4096, seq_len=4096, z_loss=1e-5,  # batch 8 on each GPU, of which the number is not stated
            optimizer=AdamW(lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1, clip=4.0),
            schedule=Schedule(warmup=0.005, anneal=0.0),  # 0.01 of the first of two epochs; min_lr is lr
            drop_context=0.1,  # not stated; ours
            precision="bf16", zero=3, recompute=True),
    },
    # README, inference: temperature 1, cfg 4, image_top_k 2000; text_top_k: inference_solver.py. How long an answer may
    # be (8192 tokens with its images there) is ours.
    sampling=Sampling(image=Choice(top_k=2000), text=Choice(top_k=10), guidance=4.0, text_length=1024),
)
