"""Janus-Pro 1B (arXiv:2501.17811): vision features where an image is read, codes of an own table where one is written.

Files are those of deepseek-ai/Janus (commit 1daa72f); report: janus_pro_tech_report.pdf there.
"""

from dataclasses import replace

from recipes.own_data import CHATS, CHATTED, DRAWN_IN_CHAT, PAIRS, READ, TEXT
from unimm.config.images import LlamaGen
from unimm.config.model import PretrainedBackbone, PretrainedVision, SeparateHead, VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import Chat, Codebook, Continuous, ImageLayout, Layout, LevelLayout, PretrainedText
from unimm.config.trains import Trains

RELEASE = "deepseek-community/Janus-Pro-1B"  # transformers' port
EOS = "<｜end▁of▁sentence｜>"
ROWS = NextToken(mix=(CHATTED,), steps=1, seq_len=4096, step_tokens=4096, drop_context=0.1,  # the last is ours
                 precision="bf16", zero=3, recompute=True)

recipe = Recipe(
    name="janus_pro_1b",
    about="Janus-Pro 1B: reads images through SigLIP, writes them through an own table and head.",
    text=PretrainedText(path=RELEASE, size=102400), image_tokenizer=LlamaGen(),  # vocabulary: report, Table 1 (100K)
    codebooks=(Codebook(name="visual", size=16384, shared=False),),  # report, 3.1
    continuous=(Continuous(name="vision", channels=1024, placeholder="<image_placeholder>"),),  # SigLIP-Large
    layout=Layout(  # janus/models/processing_vlm.py, generation_inference.py
        write=ImageLayout(begin="<begin_of_image>", levels=(LevelLayout(space="visual"),), end="<end_of_image>",
                          stop="count"),
        read=ImageLayout(begin="<begin_of_image>", levels=(LevelLayout(space="vision"),), end="<end_of_image>"),
        sizes=((24, 24),), bos="<｜begin▁of▁sentence｜>", eos=EOS, pad="<｜▁pad▁｜>", unconditional="pad",
        chat=Chat(  # janus/utils/conversation.py, DeepSeek; README; beside_image: transformers' chat template
            system=("", "\n\n"), user=("<|User|>: ", "\n\n"), assistant=("<|Assistant|>:", EOS), lead=" ",
            beside_image="\n", preface="You are a helpful language and vision assistant. You are able to understand "
            "the visual content that the user provides, and assist the user with a variety of tasks using natural "
            "language.")),
    # 100001: conversation.py. 100581: transformers' JanusConfig. 100016, 100593: ByteDance-Seed/VeOmni. 100000 and pad:
    # PKU-YuanGroup/UniLLM, inferscripts/test_text_tokenizer.py. The speakers' are not stated: their tokenizer has them.
    special_ids={"<｜begin▁of▁sentence｜>": 100000, EOS: 100001, "<｜▁pad▁｜>": 100002,
                 "<begin_of_image>": 100016, "<image_placeholder>": 100581, "<end_of_image>": 100593},
    backbone=PretrainedBackbone(path=RELEASE),
    image_in=VisionFeatures(encoder=PretrainedVision(path=RELEASE), weights=RELEASE),
    image_out=SeparateHead(weights=RELEASE),
    data={"pairs": PAIRS, "chats": CHATS, "text": TEXT},
    stages={  # report, Table 2; batches are rows of 4,096
        "adaptors": replace(
            ROWS, mix=(CHATTED, replace(DRAWN_IN_CHAT, weight=3)), steps=20_000, step_tokens=256 * 4096,
            train=Trains(parts=("aligner", "code_aligner", "codes", "image_output")), optimizer=AdamW(lr=1e-3),
            schedule=Schedule(warmup=0.03, anneal=0.0)),
        "pretrain": replace(  # 270,000 of 360,000 steps: 3.1
            ROWS, mix=(replace(CHATTED, weight=2), replace(READ, weight=3), replace(DRAWN_IN_CHAT, weight=5)),
            steps=270_000, step_tokens=512 * 4096, train=Trains(frozen=("vision",)), optimizer=AdamW(lr=1e-4),
            schedule=Schedule(warmup=0.0185, anneal=0.0)),
        "sft": replace(
            ROWS, mix=(replace(CHATTED, weight=5), READ, replace(DRAWN_IN_CHAT, weight=4)), steps=80_000,
            step_tokens=128 * 4096, optimizer=AdamW(lr=4e-5), schedule=Schedule(warmup=0.0, anneal=0.0)),
    },
    sampling=Sampling(image=Choice(), guidance=5.0, text_length=512),  # generation_inference.py, inference.py
)
