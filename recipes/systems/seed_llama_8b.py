"""SEED-LLaMA 8B (arXiv:2310.01218): 32 causal tokens an image, Vicuna 7B taught by low-rank adapters and new rows.

Files are those of AILab-CVC/SEED (commit 93b3cf4): T/ is SEED_Tokenizer/lavis/, M/ is MultiModalLLM/.
"""

from dataclasses import replace

from recipes.own_data import CAPTIONED, CHATS, CHATTED, DRAWN, DRAWN_IN_CHAT, PAIRS, READ, TEXT
from unimm.config.images import Contrastive, Distill, ViTTokenizer
from unimm.config.model import FlowDecoder, PretrainedBackbone, PretrainedVision, SharedTable
from unimm.config.quantizers import VQ
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, Detokenize, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Chat, Codebook, ImageLayout, Layout, LevelLayout, Line, PretrainedText
from unimm.config.trains import Lora, Trains

LORA = Trains(parts=("embeddings", "head", "norms"), lora=Lora(rank=16, alpha=32.0, dropout=0.05, targets=(
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")))  # M/.../vicuna_7b_lora.yaml

recipe = Recipe(
    name="seed_llama_8b", about="SEED-LLaMA 8B: 32 causal tokens an image, drawn by a diffusion model.",
    text=PretrainedText(path="AILab-CVC/seed-tokenizer-2", size=32000),  # Vicuna's; those below stand behind them
    # Published: a causal Q-Former (12 layers of 768) on a frozen EVA-CLIP, trained by contrast, then its codebook by
    # 5 VQ (commitment 1, no moving averages) + 2 (1 - cosine): T/models/blip2_models/. Here one ViT of the Q-Former's
    # size reads pixels and gives them back, and a SigLIP with EVA's grid teaches it.
    image_tokenizer=ViTTokenizer(
        image=224, downsample=14, width=768, layers=12, heads=12, decoder_layers=4, queries=32, causal=True,
        quantizer=VQ(size=8192, dim=32, commitment=5.0), losses=(Contrastive(), Distill(weight=2.0))),
    features=PretrainedVision(path="google/siglip-so400m-patch14-224"),
    # Published: Stable Diffusion 2.1 unCLIP, frozen, 768 px (models/seed_llama_tokenizer.py). Here one of our size.
    decoder=FlowDecoder(scale=3, patch=8, width=320, layers=2, steps=20),
    codebooks=(Codebook(name="visual", size=8192, start=32000, token="<img_{code:05d}>"),),  # scripts/, image_id_shift
    layout=Layout(
        write=ImageLayout(begin="<img>", levels=(LevelLayout(space="visual", shape=Line(length=32)),), end="</img>"),
        sizes=((16, 16),), pixels_per_code=14, pad="<unk>",  # M/src/data/torchdata_sft.py: \n between turns
        chat=Chat(system=None, user=("USER: ", "\n"), assistant=("ASSISTANT:", "</s>"), lead=" ")),
    special_ids={"<unk>": 0, "<s>": 1, "</s>": 2},  # LLaMA's; those of <img> and </img> are not stated
    backbone=PretrainedBackbone(path="lmsys/vicuna-7b-v1.1"),  # the releases: AILab-CVC/seed-llama-8b-pretrain, -8b-sft
    image_in=SharedTable(rows="normal"), data={"pairs": PAIRS, "text": TEXT, "chats": CHATS},
    stages={
        "tokenizer": Reconstruct(  # T/projects/blip2/train/pretrain_codebook.yaml; 100,000 steps are ours
            mix=(DRAWN,), steps=100_000, batch=16384, optimizer=AdamW(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
            schedule=Schedule(warmup=0.02, anneal=0.98, shape="cosine", final=0.1), precision="bf16"),
        "detokenizer": Detokenize(mix=(DRAWN,), steps=100_000, batch=256, precision="bf16"),  # ours
        "pretrain": NextToken(  # M/scripts/train_a100_lora_multi_node_pretrain.sh, M/configs/data/*_pretrain.yaml
            # Interleaved documents (3.0) and video (0.5) are not mixed here; captions to draw are learned too there.
            mix=(replace(DRAWN, weight=2.75), replace(CAPTIONED, weight=2.75), READ), steps=30_000, train=LORA,
            step_tokens=64 * 4 * 26 * 1024, seq_len=1024, drop_context=0.0,  # 4 x 26 rows on each GPU, of 64: ours
            optimizer=AdamW(lr=1.5e-4, weight_decay=0.05), precision="bf16", zero=2, recompute=True,
            schedule=Schedule(warmup=0.03, anneal=0.97, shape="cosine", final=0.05)),
        "sft": NextToken(  # M/scripts/train_a100_lora_multi_node_sft.sh; *_sft.yaml has 18 sources; rows, 1 to 1 ours
            mix=(CHATTED, DRAWN_IN_CHAT), steps=50_000, train=LORA, step_tokens=64 * 26 * 1024, seq_len=1024,
            drop_context=0.0, optimizer=AdamW(lr=1e-4, weight_decay=0.05), precision="bf16", zero=2, offload=True,
            schedule=Schedule(warmup=0.07, anneal=0.93, shape="cosine", final=0.1)),
    },
    sampling=Sampling(image=Choice(top_p=0.5), text=Choice(top_p=0.5), guidance=1.0, text_length=512),  # scripts/
)
