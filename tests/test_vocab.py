"""One id space: every marker and code has an id of its own, the stated ones where they are stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ten_systems import TEN

from unimm.config.check import ConfigError
from unimm.config.tokens import Codebook, Continuous, ImageLayout, Layout, LevelLayout
from unimm.vocab import build_vocab, fill, markers

LAYOUT = Layout(
    write=ImageLayout(begin="<boi>{h} {W}", levels=(LevelLayout(space="visual", before="<w{w}>"),), end="<eoi>"),
    sizes=((2, 3), (4, 4)),
    pixels_per_code=8,
)


def test_markers_are_found_once_in_the_order_of_the_description():
    found = markers(LAYOUT, (Continuous(name="features", channels=4, placeholder="<image>"),))
    assert found == [
        "<pad>",
        "<s>",
        "</s>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
        "<boi>",
        "<w3>",
        "<w4>",
        "<eoi>",
        "<image>",
    ]


def test_a_template_is_filled_with_codes_and_pixels():
    assert fill("<a{h}>{w} {H}x{W}", (2, 3), 8) == "<a2>3 16x24"
    for wrong in ("{x}", "{", "{0}", "{h:q}"):
        with pytest.raises(ConfigError, match="may use only"):
            fill(wrong, (2, 3), 8)


def test_ids_follow_the_text_in_order():
    vocab = build_vocab(100, ["<a>", "<b>"], {}, (Codebook(name="one", size=10), Codebook(name="two", size=5)))
    assert vocab.special == {"<a>": 100, "<b>": 101}
    assert [(r.start, r.stop) for r in vocab.ranges.values()] == [(102, 112), (112, 117)]
    assert vocab.rows == vocab.size == 117


def test_a_depth_takes_one_placeholder_and_its_own_table_lies_behind_the_rows():
    books = (
        Codebook(name="own", size=50, shared=False),
        Codebook(name="deep", size=8, depth=4),
        Codebook(name="flat", size=8),
    )
    vocab = build_vocab(10, ["<a>"], {}, books)
    assert (vocab.ranges["deep"].size, vocab.ranges["deep"].codes) == (1, 8)
    assert vocab.ranges["own"].start == vocab.rows == 10 + 1 + 1 + 8
    assert vocab.size == vocab.rows + 50


def test_stated_ids_are_kept_and_the_others_go_around_them():
    vocab = build_vocab(10, ["<a>", "<b>", "<c>"], {"<b>": 10, "<c>": 3}, (Codebook(name="v", size=4, start=11),))
    assert vocab.special == {"<b>": 10, "<c>": 3, "<a>": 15}
    assert vocab.ranges["v"].start == 11
    assert not vocab.is_text[3], "a marker inside the text's ids (a release's own) is no text"


def test_a_release_may_keep_its_codes_inside_the_text_ids():
    """Chameleon's image codes are ids 4 to 8195 of its tokenizer's 65,536."""
    vocab = build_vocab(20, ["<a>"], {}, (Codebook(name="v", size=8, start=4),))
    assert (vocab.special["<a>"], vocab.rows) == (20, 21)
    assert np.flatnonzero(vocab.is_text).tolist() == [0, 1, 2, 3, *range(12, 20)]


@pytest.mark.parametrize(
    "special, books",
    [
        ({"<a>": 3, "<b>": 3}, ()),
        ({"<a>": 12}, (Codebook(name="v", size=4, start=10),)),
        ({}, (Codebook(name="v", size=4, start=10), Codebook(name="w", size=4, start=13))),
        ({}, (Codebook(name="v", size=4), Codebook(name="v", size=8))),
        ({"<a>": -1}, ()),
        ({}, (Codebook(name="v", size=4, start=-1),)),
        ({"<c>": 5}, ()),
    ],
)
def test_ids_that_cannot_be_are_refused(special, books):
    with pytest.raises(ConfigError):
        build_vocab(10, ["<a>", "<b>"], special, books)


def test_a_table_of_its_own_may_not_lie_inside_the_rows():
    with pytest.raises(ConfigError, match="behind the language model's rows"):
        build_vocab(10, ["<a>"], {}, (Codebook(name="own", size=4, start=11, shared=False), Codebook(name="v", size=9)))


@given(
    text=st.integers(1, 50),
    count=st.integers(0, 5),
    stated=st.dictionaries(st.integers(0, 5), st.integers(0, 80)),
    sizes=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 2), st.booleans(), st.none() | st.integers(0, 90)), max_size=4
    ),
)
def test_every_id_means_one_thing(text, count, stated, sizes):
    """Whatever is stated: either it is refused, or no two markers or codes share an id and nothing lies outside."""
    names = [f"<{n}>" for n in range(count)]
    books = tuple(
        Codebook(name=str(n), size=size, depth=depth, shared=shared, start=start)
        for n, (size, depth, shared, start) in enumerate(sizes)
    )
    try:
        vocab = build_vocab(text, names, {f"<{n}>": i for n, i in stated.items()}, books)
    except ConfigError:
        return
    claimed = list(vocab.special.values()) + [i for r in vocab.ranges.values() for i in range(r.start, r.stop)]
    assert len(claimed) == len(set(claimed)) and set(vocab.special) == set(names)
    assert max([text - 1, *claimed]) < vocab.size
    assert all((r.stop <= vocab.rows) if r.shared else (r.start >= vocab.rows) for r in vocab.ranges.values())
    kinds = vocab.is_text.astype(int) + vocab.is_code + np.isin(np.arange(vocab.size), list(vocab.special.values()))
    assert kinds[:text].tolist() == [1] * text and kinds.max() <= 1


@pytest.mark.parametrize("name", TEN)
def test_the_vocabularies_of_ten_systems_hold_their_parts_apart(name):
    vocab = TEN[name].build().vocab
    assert not (vocab.is_text & vocab.is_code).any()
    assert not (vocab.is_text | vocab.is_code)[list(vocab.special.values())].any()
    assert vocab.is_code.sum() == sum(r.size for r in vocab.ranges.values())
