"""LaVIT 7B v2 (arXiv:2309.04669): as many codes as an image has to say, about 85 of 256 patches.

Files are those of jy0205/LaVIT (commit 8cde9b4), folder LaVIT/, which holds no training; appendix D was not at hand.
"""

from dataclasses import replace

from recipes.own_data import CAPTIONED, DRAWN, PAIRS, READ, TEXT
from unimm.config.images import Distill, ViTTokenizer
from unimm.config.model import FlowDecoder, PretrainedBackbone, PretrainedVision, SharedTable
from unimm.config.quantizers import VQ
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, Detokenize, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Chat, Codebook, ImageLayout, Layout, LevelLayout, PretrainedText, UpTo

recipe = Recipe(
    name="lavit_7b",
    about="LaVIT 7B: a selector keeps a third of the patches, so that the count of codes varies.",
    text=PretrainedText(path="rain1011/LaVIT-7B-v2", size=32000),  # Llama 2's: README
    # 3.1; models/modeling_visual_tokenzier.py, modeling_decoder.py. Published: EVA-CLIP's 1408 channels through a
    # selector and a merger of 12 layers; 12 more give EVA's features back. Here one ViT of the merger's size reads
    # pixels, gives them back, and learns from a SigLIP with EVA's grid.
    image_tokenizer=ViTTokenizer(
        image=224, downsample=14, width=1408, layers=12, heads=16, decoder_layers=12, keep=1 / 3, keep_weight=2.0,
        quantizer=VQ(size=16384, dim=32), losses=(Distill(),)),
    features=PretrainedVision(path="google/siglip-so400m-patch14-224"),
    # Published: Stable Diffusion 1.5's UNet on the features, up to 1,024 pixels by SDXL's (README), guided by 7. Here
    # one of our own; its size is ours.
    decoder=FlowDecoder(scale=2, patch=8, width=320, layers=2, steps=25),
    codebooks=(Codebook(name="visual", size=16384, start=32002),),  # modeling_visual_tokenzier.py, tokenize_image
    layout=Layout(
        write=ImageLayout(begin="<IMG>", levels=(LevelLayout(space="visual", shape=UpTo(longest=256)),), end="</IMG>"),
        sizes=((16, 16),), pixels_per_code=14, pad="<unk>",  # what is drawn there has 19 to 199 codes; eos pads
        unconditional="bare",  # lavit_for_generation.py; the others begin without <s> too there
        chat=Chat(system=None, user=("Question: ", " "), assistant=("Answer:", "</s>"), lead=" ")),  # VQA's words
    # lavit_for_generation.py; [IMG] and [/IMG] there
    special_ids={"<unk>": 0, "<s>": 1, "</s>": 2, "<IMG>": 32000, "</IMG>": 32001},
    backbone=PretrainedBackbone(path="meta-llama/Llama-2-7b-hf"),  # README; the release: rain1011/LaVIT-7B-v2
    image_in=SharedTable(),  # published: an image before text as features through one layer; here as its codes
    data={"pairs": PAIRS, "text": TEXT},
    stages={  # 3.3
        "tokenizer": Reconstruct(mix=(DRAWN,), steps=50_000, batch=2048, optimizer=AdamW(lr=2e-4),  # rate: ours
                                 precision="bf16"),
        "detokenizer": Detokenize(mix=(DRAWN,), steps=20_000, batch=2048, precision="bf16"),  # batch, rate: ours
        "pretrain": NextToken(
            # 93 M captions, 100 M to draw; words that stand before an image are learned too there. All else is ours.
            mix=(replace(CAPTIONED, weight=0.93), DRAWN, replace(READ, weight=0.2)), steps=100_000,
            step_tokens=512 * 2048, seq_len=2048, drop_context=0.1, optimizer=AdamW(lr=5e-5),
            schedule=Schedule(warmup=0.03, anneal=0.97, shape="cosine"), precision="bf16", zero=3, recompute=True),
    },
    sampling=Sampling(image=Choice(top_k=50), guidance=4.0, text_length=36),  # generate_image; captions: 36
)
