"""What the toy scales of all systems share: coloured shapes on 32 x 32 pixels, a language model of a million weights.

Every number is ours: each system trains through its published one's code path in minutes on one CPU core. Steps and
data are the same for all, so that what differs between their scores is the system. Turns of chat are opened by markers
alone and a caption is said as it is: a template's words would take half of a model's tokens this small. Codes
are read with a learned vector for their place in the image.
"""

from unimm.config.data import Shapes, Use
from unimm.config.images import ConvTokenizer
from unimm.config.model import FreshBackbone, FreshVision, SharedTable
from unimm.config.quantizers import VQ
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, Contrast, Muon, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Chat, SentencePieceText

TEXT = SentencePieceText(vocab_size=600)
BACKBONE = FreshBackbone(family="qwen3", width=128, layers=4, heads=4, kv_heads=4, mlp=336)
SIZES = ((4, 4),)
PIXELS_PER_CODE = 8
CHAT = Chat(system=None, user=("<user>", ""), assistant=("<assistant>", "<end>"))
TABLE = SharedTable(rows="codebook", places=24)

PAIRS = Shapes(part="pairs", count=30000, seed=1)
CHATS = Shapes(part="chats", count=30000, seed=2)
DATA = {"pairs": PAIRS, "chats": CHATS}

# Few different patches make up this world; a code that sees its own patch alone is always the same for the same patch.
IMAGES = ConvTokenizer(
    image=32, downsample=8, width=96, encoder_kernel=1, quantizer=VQ(size=512, dim=16), foreground_weight=4.0)
FEATURES = FreshVision(patch=8, width=64, layers=2, heads=4)

SEEN = Contrast(mix=(Use(data="pairs"),), steps=600, batch=64, optimizer=AdamW(lr=2e-3))
TOKENIZER = Reconstruct(mix=(Use(data="pairs"),), steps=1000, batch=32, optimizer=AdamW(lr=3e-3))
MIX = (Use(data="pairs", task="t2i", weight=0.45), Use(data="pairs", task="draw", weight=0.05),
       Use(data="pairs", task="caption", weight=0.05), Use(data="chats", weight=0.45))
LANGUAGE = NextToken(
    mix=MIX, steps=2000, step_tokens=4 * 256, seq_len=256, optimizer=Muon(lr=0.02, adamw_lr=4e-3),
    schedule=Schedule(warmup=0.02, anneal=0.5), preview_every=2000, save_every=1000)

SAMPLING = Sampling(image=Choice(temperature=0.3), guidance=1.5)
