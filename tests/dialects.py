"""Small text tokenizers with the names and numbers of releases, saved as their folders hold them; random images."""

from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from unimm.layout import Layout
from unimm.recipe import load_recipe
from unimm.sample import Codes, Latents, Level
from unimm.system import layout_of
from unimm.text import PretrainedTokenizer

ROOT = Path(__file__).parents[1]
MERGES = [("Ġ", "a"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("i", "s"), ("Ġ", "is"), ("Ġ", "H"), (":", "Ġ"),
          (".", "Ġ"), ("Ċ", "Ċ"), ("o", "n"), ("e", "r")]


def tokenizer(folder: Path, special: dict[str, int], others: dict[str, int], first: int, bos: str = "") -> Path:
    """A byte-level tokenizer in `folder`: `special` tokens and `others` under their ids, bytes and merges from `first`.

    Called as its class would, it puts `bos` first. Merges cross a space, a colon, a full stop and a newline, so that
    text encoded in pieces would show.
    """
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    vocab = {piece: first + n for n, piece in enumerate(pieces)} | special | others
    made = Tokenizer(models.BPE(vocab, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    if bos:
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, special[bos])])
    made.save(str(folder / "tokenizer.json"))
    return folder


def recipe(name: str):
    return load_recipe(ROOT / "recipes" / "systems" / f"{name}.py")


def layout_with(name: str, folder: Path, **changes) -> Layout:
    """A recipe's layout on the tokenizer of `folder`."""
    from dataclasses import replace

    changed = recipe(name)
    return layout_of(replace(changed, layout=replace(changed.layout, **changes)), PretrainedTokenizer(str(folder)))


def random_content(layout: Layout, rng: np.random.Generator, learn: bool, size: tuple[int, int] | None = None,
                   longest: bool = False) -> Codes | Latents:
    """Codes or latents of a size that the layout knows, as many as it may have where `longest`."""
    rows, columns = size or layout.config.sizes[rng.integers(len(layout.config.sizes))]
    levels = []
    reads = layout.config.read if layout.config.read is not None and not learn else layout.config.write
    for level in reads.levels:
        match level.shape.kind:
            case "grid":
                grid = (round(rows * level.shape.scale), round(columns * level.shape.scale))
                length = grid[0] * grid[1]
            case "line":
                grid, length = None, level.shape.length
            case "up_to":
                grid, length = None, int(rng.integers(level.shape.longest if longest else level.shape.shortest,
                                                        level.shape.longest + 1))
        if level.space in layout.continuous:
            return Latents(rng.normal(size=(length, layout.continuous[level.space].channels)).astype(np.float32), grid)
        book = layout.vocab.ranges[level.space]
        levels.append(Level(rng.integers(book.codes, size=(length, book.depth)), grid))
    return Codes(tuple(levels))
