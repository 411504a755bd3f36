"""Emu3-Gen (arXiv:2409.18869): images of any size, their size written as text before them.

Files are those of baaivision/Emu3 (commit f6ea9aa).
"""

from recipes.own_data import DRAWN, PAIRS
from unimm.config.images import Emu3
from unimm.config.model import PretrainedBackbone
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import Chat, Codebook, ImageLayout, Layout, LevelLayout, PretrainedText

recipe = Recipe(
    name="emu3_gen",
    about="Emu3-Gen: next-token prediction of 8 x 8 pixel codes, about 8,200 an image of 720 x 720.",
    text=PretrainedText(path="Emu3-community/Emu3-Gen-hf", size=184622),  # emu3/mllm/configuration_emu3.py
    image_tokenizer=Emu3(image=720, fit="area"),  # emu3/train/prepare_data.py: 518,400 pixels in shape
    codebooks=(Codebook(name="visual", size=32768, start=151854, token="<|visual token {code:06d}|>"),),
    layout=Layout(
        write=ImageLayout(  # emu3/train/datasets.py, format_image_prompt
            begin="<|image start|>{h}*{w}<|image token|>", end="<|extra_201|><|image end|>",
            levels=(LevelLayout(space="visual", row_end="<|extra_200|>", row_ends="after"),)),
        # emu3/mllm/processing_emu3.py, calculate_generate_size, for 1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3
        sizes=((90, 90), (78, 104), (104, 78), (68, 120), (120, 68), (73, 110), (110, 73)), any_size=True,
        pixels_per_code=8, bos="<|extra_203|>", eos="<|extra_204|>", pad="<|endoftext|>",
        # processing_emu3.py, chat_template; what an answer begins with is not stated; ours
        chat=Chat(system=("", ""), user=(" USER: ", "."), assistant=(" ASSISTANT:", "<|extra_204|>"), lead=" ",
                  preface="You are a helpful assistant.", draw_preface="You are a helpful assistant."),
        unconditional="drop", learn="codes"),  # emu3/train/datasets.py: an empty prompt, apply_loss_on_only_vision
    # emu3/mllm/configuration_emu3.py; extra_200 to extra_204 are 151846 to 151850 there
    special_ids={"<|endoftext|>": 151643, "<|extra_{n}|>": 151646, "<|image token|>": 151851,
                 "<|image start|>": 151852, "<|image end|>": 151853},
    backbone=PretrainedBackbone(path="Emu3-community/Emu3-Gen-hf"),
    data={"pairs": PAIRS},
    stages={  # scripts/t2i_sft.sh
        "sft": NextToken(
            mix=(DRAWN,), steps=10_000,  # not stated; ours: 4 epochs of data of one's own
            step_tokens=64 * 10240, seq_len=10240,  # 2 rows x 4 accumulated on each GPU, of which 8 are ours
            optimizer=AdamW(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, clip=5.0),
            schedule=Schedule(warmup=0.003, anneal=0.997, shape="cosine", final=0.1),  # 30 steps; to 1e-6
            drop_context=0.05, precision="bf16", zero=3, recompute=True),
    },
    sampling=Sampling(  # image_generation.py
        image=Choice(top_k=2048), guidance=3.0, text_length=1024,
        positive=" masterpiece, film grained, best quality.",
        negative="lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
                 "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."),
)
