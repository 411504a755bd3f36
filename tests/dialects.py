"""Small text tokenizers with the names and numbers of releases, saved as their folders hold them."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from unimm.layout import Layout
from unimm.recipe import load_recipe
from unimm.system import layout_of
from unimm.text import PretrainedTokenizer

ROOT = Path(__file__).parents[1]
MERGES = [("Ġ", "a"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("i", "s"), ("Ġ", "is"), ("Ġ", "H"), (":", "Ġ"),
          (".", "Ġ"), ("Ċ", "Ċ"), ("o", "n"), ("e", "r")]


def tokenizer(folder: Path, special: dict[str, int], others: dict[str, int], first: int, bos: str = "") -> Path:
    """A byte-level tokenizer in `folder`: `special` tokens and `others` under their ids, bytes and merges from `first`.

    Called as its class would, it puts `bos` first. Merges cross a space, a colon, a full stop and a newline, so that text encoded in pieces would show.
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
