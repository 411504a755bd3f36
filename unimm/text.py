"""Strings to text ids and back. Control tokens are never written here: a user's "<s>" stays three characters."""

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from unimm.errors import UserError


class TextError(UserError):
    """A text tokenizer that can't be read or trained."""


class TextTokenizer:
    """Strings to ids and back; here, what holds where every id is text.

    size      one more than its highest id
    controls  the ids below `size` that no text has: a release's own special tokens
    """

    size: int
    controls: frozenset[int] = frozenset()

    def id_of(self, token: str) -> int | None:
        """The id of a token the release already has, or None."""
        return None

    def keep_apart(self, ids: Iterable[int]) -> None:
        """From now on no text gives these ids, also where the release left their tokens unmarked (<unused0>, codes)."""

    def encode(self, text: str) -> list[int]:
        """Raises TextError for half a surrogate pair."""

    def decode(self, ids: Sequence[int]) -> str:
        """What `encode` was given."""


def utf8(text: str) -> bytes:
    """Raises TextError for half a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20):error.end + 20]
        raise TextError(f"the text {near!r} is not valid Unicode: {error.reason}") from None


class BytesTokenizer(TextTokenizer):
    """UTF-8 bytes as ids: stands in where a run has not trained its own tokenizer yet.

    For a release's tokenizer that is not at hand: `size` ids, of which bytes take the first 256 in a row that nothing
    else claims (`taken`), so that markers and codes keep the release's numbers.
    """

    def __init__(self, size: int = 256, taken: Iterable[int] = ()):
        edges = [-1, *sorted({i for i in taken if i < size}), size]
        self.first = next((a + 1 for a, b in zip(edges, edges[1:]) if b - a > 256), size)
        self.size = max(size, self.first + 256)
        self.controls = frozenset(range(self.first)) | frozenset(range(self.first + 256, self.size))

    def encode(self, text: str) -> list[int]:
        return [self.first + byte for byte in utf8(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - self.first for i in ids).decode("utf-8", errors="replace")


SPACE = "\u2581"  # SentencePiece's own sign for a space


class SentencePieceTokenizer(TextTokenizer):
    """A SentencePiece model. Exact both ways: `decode(encode(text)) == text` for any text."""

    def __init__(self, model: bytes):
        import sentencepiece

        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self.size = self._processor.vocab_size()
        self._space = [self._processor.PieceToId(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._encoded = lru_cache(100_000)(self._encode)  # for texts that repeat, as captions and questions do

    def encode(self, text: str) -> list[int]:
        return list(self._encoded(text))

    def _encode(self, text: str) -> list[int]:
        utf8(text)
        first, *rest = map(self._processor.EncodeAsIds, text.split(SPACE))
        return first + [i for ids in rest for i in self._space + ids]  # as bytes, so that it won't come back as a space

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.DecodeIds([int(i) for i in ids])


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """A byte-pair model of at most `vocab_size` pieces, 256 of them bytes, so that no text is unknown.

    Byte pairs, not unigram: on the few distinct words of a small world unigram's pruning leaves "▁" apart from its
    word (1.71 ids a word on the demo's texts, byte pairs 1.10).
    """
    import sentencepiece

    model = io.BytesIO()
    texts = [t for t in texts if t.strip()]
    if not texts:
        raise TextError("there is no text to train the text tokenizer on; the recipe's data yields none")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size, hard_vocab_limit=False,
        model_type="bpe", byte_fallback=True, character_coverage=1.0, required_chars=SPACE,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2, num_threads=1)
    return SentencePieceTokenizer(model.getvalue())


class PretrainedTokenizer(TextTokenizer):
    """The tokenizer of a published model, with special-token text in prompts kept as plain text."""

    def __init__(self, path: str):
        file = Path(path) / "tokenizer.json"
        if file.is_file():
            from tokenizers import Tokenizer

            try:
                self._tokenizer = Tokenizer.from_file(str(file))
            except Exception as error:  # the only class that tokenizers raises
                raise TextError(f"{file}: not a fast tokenizer ({error}); save it anew") from None
        elif Path(path).exists():
            raise TextError(f"{path}: no tokenizer.json in this folder; save a fast transformers tokenizer there")
        else:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(path).backend_tokenizer
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        added = self._tokenizer.get_added_tokens_decoder()
        self.controls = frozenset(i for i, token in added.items() if token.special)
        self._apart: frozenset[int] = frozenset()

    def keep_apart(self, ids: Iterable[int]) -> None:
        self._apart = frozenset(ids)

    def encode(self, text: str) -> list[int]:
        """Raises TextError where one character is a token that no text may be."""
        utf8(text)
        found = self._tokenizer.encode(text, add_special_tokens=False)
        if self._apart.isdisjoint(found.ids):
            return found.ids
        spans = [span for i, span in zip(found.ids, found.offsets) if i in self._apart]
        if short := [text[a:b] for a, b in spans if b - a < 2]:
            raise TextError(f"the text holds {short[0]!r}, which this tokenizer has for a marker or a code only")
        cuts = [(a + b) // 2 for a, b in spans]  # half of a token's name is not the token
        return [i for a, b in zip([0, *cuts], [*cuts, None]) for i in self.encode(text[a:b])]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


def load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    if not path.is_file():
        raise TextError(f"{path}: no such text tokenizer; the run's first stage trains it")
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except RuntimeError:
        raise TextError(f"{path}: not a SentencePiece model; restore the file or train the run anew") from None
