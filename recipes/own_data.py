"""Where a published system's recipe looks for data of one's own; the releases' own data are not public.

Change a path on the command line: --data.pairs.path folder.
"""

from unimm.config.data import ChatJsonl, ImageFolder, Use

PAIRS = ImageFolder(path="data/pairs")
CHATS = ChatJsonl(path="data/chats.jsonl")
TEXT = ChatJsonl(path="data/text.jsonl")

DRAWN = Use(data="pairs", task="t2i")
DRAWN_IN_CHAT = Use(data="pairs", task="draw")
CAPTIONED = Use(data="pairs", task="caption")
CHATTED = Use(data="chats")
READ = Use(data="text")
