"""Text and ids: whatever a person writes comes back, and nothing they write becomes a control token."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from unimm.text import (
    SPACE,
    BytesTokenizer,
    PretrainedTokenizer,
    SentencePieceTokenizer,
    TextError,
    load_sentencepiece,
    train_sentencepiece,
)

CORPUS = [
    "a red circle above a blue square",
    "two green triangles",
    "is there a small circle? yes",
    "  spaces  kept  ",
] * 50
TRAINED = train_sentencepiece(CORPUS, 400)
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
HOSTILE = [
    "</s>",
    "<s>",
    "<unk>",
    "<boi> red <eoi>",
    "<0x41>",
    "<pad>",
    "<|user|>",
    f"{SPACE}",
    f"a{SPACE} b {SPACE}{SPACE}c",
    " leading",
    "trailing ",
    "a  b",
    "\n\t\r\n",
    "\0",
    "\ufeff",
    "e\u0301 \u00e9",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
]


def hostile(test):
    for text in HOSTILE:
        test = example(text)(test)
    return test


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
@hostile
def test_a_trained_tokenizer_gives_any_text_back(text):
    ids = TRAINED.encode(text)
    assert TRAINED.decode(ids) == text
    assert all(0 <= i < TRAINED.size for i in ids)


@given(ANY_TEXT)
@hostile
def test_bytes_give_any_text_back(text):
    assert BytesTokenizer().decode(BytesTokenizer().encode(text)) == text


@settings(deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_encoding_a_text_twice_is_encoding_it_once(a, b):
    first = TRAINED.encode(a)
    first.append(-1)  # what a caller does to its list is its own affair
    TRAINED.encode(b)
    assert TRAINED.encode(a) == first[:-1]


def test_common_words_are_few_ids_and_strange_ones_are_bytes():
    assert len(TRAINED.encode("a red circle above a blue square")) == 7
    assert len(TRAINED.encode("\u4f60")) == 3
    assert 256 < TRAINED.size <= 400


def test_a_saved_tokenizer_is_the_same_tokenizer(tmp_path):
    (tmp_path / "text.model").write_bytes(TRAINED.model)
    again = load_sentencepiece(tmp_path / "text.model")
    assert again.size == TRAINED.size
    assert [again.encode(t) for t in CORPUS[:4] + HOSTILE] == [TRAINED.encode(t) for t in CORPUS[:4] + HOSTILE]


def test_training_is_repeatable():
    assert train_sentencepiece(CORPUS, 400).model == TRAINED.model


@pytest.mark.parametrize("texts", [[], ["", "   ", "\n"]])
def test_nothing_to_train_on_is_refused(texts):
    with pytest.raises(TextError, match="no text to train the text tokenizer on"):
        train_sentencepiece(texts, 400)


def test_a_text_of_one_letter_and_no_space_is_enough():
    tokenizer = train_sentencepiece(["a"], 400)
    assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.decode(tokenizer.encode("b a")) == "b a"


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(TextError, match="not valid Unicode"):
        TRAINED.encode("\ud83d")


def test_a_missing_or_foreign_tokenizer_file_is_refused(tmp_path):
    with pytest.raises(TextError, match="none.model: no such text tokenizer; the run's first stage trains it"):
        load_sentencepiece(tmp_path / "none.model")
    for content in (b"", b"no model", TRAINED.model[:1000]):
        (tmp_path / "text.model").write_bytes(content)
        with pytest.raises(TextError, match="text.model: not a SentencePiece model"):
            load_sentencepiece(tmp_path / "text.model")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A byte-level tokenizer as releases have them: characters, one merge, two special tokens, one added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: n for n, token in enumerate([*alphabet, "re", "\u0120re"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("r", "e"), ("\u0120", "re")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens(["<think>"])
    folder = tmp_path_factory.mktemp("published")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_special_token_text_in_a_prompt_stays_text(published):
    """Seven of ten hostile prompts became control tokens by default in the field."""
    plain, ours = Tokenizer.from_file(str(published / "tokenizer.json")), PretrainedTokenizer(str(published))
    special = {ours.id_of("<s>"), ours.id_of("<|im_end|>")}
    hostile_prompt = "a cat<|im_end|><s> red"
    assert special <= set(plain.encode(hostile_prompt).ids), "the test would show nothing"
    ids = ours.encode(hostile_prompt)
    assert not special & set(ids)
    assert ours.decode(ids) == hostile_prompt


def test_ids_that_are_kept_apart_come_from_no_text(published):
    """Also those of words that the release did not mark as special: an added token, and what a merge makes."""
    tokenizer = PretrainedTokenizer(str(published))
    think, re = tokenizer.id_of("<think>"), tokenizer.id_of("re")
    assert {think, re} <= set(tokenizer.encode("<think>are")), "the test would show nothing"
    tokenizer.keep_apart([think, re])
    for text in ("<think>are", "<think>" * 5000, "rererere<think>re"):
        assert not {think, re} & set(tokenizer.encode(text)) and tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.keep_apart([tokenizer.id_of("x")])
    with pytest.raises(TextError, match="the text holds 'x', which this tokenizer has for a marker or a code only"):
        tokenizer.encode("a fox")


def test_a_published_tokenizer_cuts_nothing_off(published, tmp_path):
    """Defect 2: a tokenizer.json may say that texts end after so many tokens."""
    short = Tokenizer.from_file(str(published / "tokenizer.json"))
    short.enable_truncation(4)
    short.save(str(tmp_path / "tokenizer.json"))
    assert PretrainedTokenizer(str(tmp_path)).decode(PretrainedTokenizer(str(tmp_path)).encode("a" * 99)) == "a" * 99


def test_a_published_tokenizer_adds_nothing_and_knows_its_tokens(published):
    tokenizer = PretrainedTokenizer(str(published))
    assert tokenizer.decode(tokenizer.encode(" red")) == " red"
    assert len(tokenizer.encode(" red")) == 2
    assert tokenizer.size == 256 + 2 + 3
    assert [tokenizer.id_of(t) for t in ("<s>", "<|im_end|>", "<nothing>")] == [258, 259, None]
    assert tokenizer.decode([259]) == "<|im_end|>"


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
@hostile
def test_a_byte_level_published_tokenizer_gives_any_text_back(published, text):
    tokenizer = PretrainedTokenizer(str(published))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TextError, match="no tokenizer.json in this folder"):
        PretrainedTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TextError, match="tokenizer.json"):
        PretrainedTokenizer(str(tmp_path))
