"""Emu3.5-Image (arXiv:2510.26583): Emu3's tokens with 131,072 codes of 16 x 16 pixels; its layout and its sampling.

Files are those of baaivision/Emu3.5 (commit 8fcf1da). Its text tokenizer is Emu3's in tiktoken's form
(src/tokenizer_emu3_ibq): save it as a tokenizer.json to use it here.
"""

from dataclasses import replace

from recipes.own_data import CHATS, CHATTED, DRAWN_IN_CHAT, PAIRS
from recipes.systems import emu3_gen
from unimm.config.images import IBQ
from unimm.config.model import PretrainedBackbone
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import NextToken
from unimm.config.tokens import Chat, Codebook, ImageLayout, LevelLayout, PretrainedText

recipe = replace(
    emu3_gen.recipe,
    name="emu3_5_image",
    about="Emu3.5-Image: 1,024 x 1,024 pixels in 4,167 tokens.",
    text=PretrainedText(path="BAAI/Emu3.5-Image", size=282926),  # 151854 + 131072
    image_tokenizer=IBQ(),
    # emu3_vision_tokens.txt lists the codes' names behind the image's three markers.
    codebooks=(Codebook(name="visual", size=131072, start=151854, token="<|visual token {code:06d}|>"),),
    layout=replace(
        emu3_gen.recipe.layout,
        write=ImageLayout(  # src/utils/input_utils.py, format_image_string: ends between rows, no end of file
            begin="<|image start|>{h}*{w}<|image token|>", end="<|image end|>",
            levels=(LevelLayout(space="visual", row_end="<|extra_200|>", row_ends="between"),)),
        # configs/example_config_t2i.py, aspect_ratios, its default first
        sizes=((55, 73), (64, 64), (73, 55), (41, 97), (47, 85), (85, 47), (52, 78), (78, 52)), pixels_per_code=16,
        # configs/example_config_t2i.py, build_unc_and_template. Another task's words, "x2i", are a system turn.
        chat=Chat(system=("", ""), user=(" USER: ", ""), assistant=(" ASSISTANT: <|extra_100|>", "<|extra_101|>"),
                  preface="You are a helpful assistant.", draw_preface="You are a helpful assistant for t2i task."),
        unconditional="replace",
        replacement="You are a helpful assistant. USER: {images} ASSISTANT: <|extra_100|>", learn="all"),
    backbone=PretrainedBackbone(path="BAAI/Emu3.5-Image"),
    data={"pairs": PAIRS, "chats": CHATS},
    stages={"sft": NextToken(  # its training is not released; every number here is ours
        mix=(DRAWN_IN_CHAT, CHATTED), steps=10_000, step_tokens=64 * 8192, seq_len=8192,
        precision="bf16", zero=3, recompute=True)},
    # configs/example_config_t2i.py; guidance of edits is 3 in example_config_x2i.py. Three-way guidance is
    # no_text_img_cfg of src/utils/logits_processor.py, which no configuration there uses.
    sampling=Sampling(image=Choice(top_k=5120), text=Choice(top_k=1024, top_p=0.9), guidance=5.0, text_length=5120),
)
