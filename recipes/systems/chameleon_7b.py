"""Chameleon 7B (arXiv:2405.09818): text and images as entries of one vocabulary of 65,536.

Files are those of facebookresearch/chameleon (commit dbbe47f) under chameleon/inference. The paper was not at hand:
check what is said to be its section 3.2.
"""

from recipes.own_data import CHATS, CHATTED
from unimm.config.images import Chameleon
from unimm.config.model import PretrainedBackbone
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import Chat, Codebook, ImageLayout, Layout, LevelLayout, PretrainedText

recipe = Recipe(
    name="chameleon_7b",
    about="Chameleon 7B: early fusion, 1,024 codes an image among the words.",
    text=PretrainedText(path="facebook/chameleon-7b", size=65536),  # paper, 2.1
    image_tokenizer=Chameleon(),
    # vocab.py: names IMGIMG, the code's digits as letters, Z; ids 4 to 8195 (transformers' port, and Lumina-mGPT's
    # inference_solver.py). Their order is the release's tokenizer's own.
    codebooks=(Codebook(name="visual", size=8192, start=4, token="IMGIMG{letters}Z"),),
    layout=Layout(
        write=ImageLayout(begin="<racm3:break>", levels=(LevelLayout(space="visual"),), end="<eoss>"),  # vocab.py
        sizes=((32, 32),), pixels_per_code=16,  # 512 x 512 is 1,024 codes: paper, 2.1
        bos="<s>", eos="</s>", pad="<pad>",  # vocab.py
        # chameleon.py, tokens_from_ui: a turn has no opening and ends in <reserved08706>; an answer ends in </s>.
        chat=Chat(system=None, user=("", "<reserved08706>"), assistant=("", "</s>")),
        unconditional="drop"),  # chameleon.py, _split_inputs_for_cfg: begin of sequence, begin of image
    special_ids={"<s>": 0, "<pad>": 1, "</s>": 2, "<eoss>": 8196, "<racm3:break>": 8197, "<reserved{n}>": 4},
    backbone=PretrainedBackbone(path="facebook/chameleon-7b"),
    data={"chats": CHATS},
    stages={  # paper, 3.2; its dropout of 0.05 is left out
        "sft": NextToken(
            mix=(CHATTED,), steps=10_000,  # not stated; ours
            step_tokens=128 * 4096, seq_len=4096, drop_context=0.0, z_loss=1e-5,
            optimizer=AdamW(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0),
            schedule=Schedule(warmup=0.0, anneal=1.0, shape="cosine"),
            precision="bf16", zero=3, recompute=True),  # not stated; ours
    },
    # chameleon.py, Options; its penalty of 1.2 on repeated words is left out. Its text_length is 4096 less the prompt.
    sampling=Sampling(image=Choice(temperature=0.7, top_p=0.9), text=Choice(temperature=0.7, top_p=0.9),
                      guidance=3.0, image_guidance=1.2, text_length=1024),
)
