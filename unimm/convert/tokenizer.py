"""The text tokenizer of an exported model: the run's own, markers and codes as tokens at their ids."""

import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers.convert_slow_tokenizer import generate_merges

from unimm.convert.releases import ConvertError
from unimm.layout import Layout
from unimm.text import SPACE, SentencePieceTokenizer

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def write_tokenizer(folder: Path, layout: Layout) -> None:
    """Write tokenizer.json and tokenizer_config.json for a layout; `folder` may hold a release's, which are extended.

    Raises ConvertError where a marker or code can't have its id.
    """
    if isinstance(layout.text, SentencePieceTokenizer):
        made, bos = from_sentencepiece(layout.text), layout.config.bos
        made.post_processor = TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B",
                                                 special_tokens=[(bos, layout.bos)])
        settings = {"chat_template": chat_template(layout), "tokenizer_class": "PreTrainedTokenizerFast",
                    "clean_up_tokenization_spaces": False}
    else:
        made = Tokenizer.from_file(str(folder / TOKENIZER))
        settings = json.loads((folder / SETTINGS).read_bytes()) if (folder / SETTINGS).is_file() else {}
    vocab = layout.vocab
    names = {i: f"<|unused {i}|>" for i in range(vocab.text_size, vocab.rows)}
    names |= {r.start + k: f"<|{r.name} {k:06d}|>" for r in vocab.ranges.values() if r.shared for k in range(r.size)}
    names |= {i: marker for marker, i in vocab.special.items()}
    behind = {i: names[i] for i in range(vocab.text_size, vocab.rows)}
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in behind.values()])
    for i, name in behind.items():
        if (got := made.token_to_id(name)) != i:
            raise ConvertError(f"{name} has id {i} in the run, but its tokenizer makes it {got}; a stock tokenizer "
                               "can't hold this vocabulary")
    named = {"bos_token": layout.config.bos, "eos_token": layout.config.eos, "pad_token": layout.config.pad}
    made.save(str(folder / TOKENIZER))
    (folder / SETTINGS).write_text(json.dumps(settings | named, indent=1, ensure_ascii=False) + "\n")


def from_sentencepiece(text: SentencePieceTokenizer) -> Tokenizer:
    """The same byte-pair model as a `tokenizers.Tokenizer`: equal ids for texts without a literal U+2581."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(text.model)
    pieces = [processor.IdToPiece(i) for i in range(processor.vocab_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: processor.GetScore(i) for i, piece in enumerate(pieces)}
    whole = {piece for i, piece in enumerate(pieces) if processor.IsByte(i) or processor.IsUnknown(i)}
    made = Tokenizer(models.BPE(vocab=ids, merges=generate_merges(ids, scores, whole), unk_token=pieces[0],
                                byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def chat_template(layout: Layout) -> str:
    """A Jinja template that writes a chat of text as `Layout.prompt` does."""
    turns = {role: turn for role in ("system", "user", "assistant")
             if (turn := getattr(layout.config.chat, role)) is not None}
    before, after = (json.dumps({role: turn[side] for role, turn in turns.items()}) for side in (0, 1))
    return (f"{{%- set before = {before} -%}}{{%- set after = {after} -%}}"
            + Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8"))
