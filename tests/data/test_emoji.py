"""The emoji are many, named apart, drawn apart and the same every time."""

import numpy as np
import pytest

from data import emoji
from unimm.sample import Image, Text

needs_font = pytest.mark.usefixtures("font")


@pytest.fixture(scope="module")
def font():
    try:
        return emoji.find_font()
    except emoji.FontMissing as why:
        pytest.skip(str(why))


@needs_font
def test_there_are_about_1350_with_names_of_their_own():
    names = [name for name, _ in emoji.emoji(16)]
    assert 1300 <= len(names) == len(set(names))
    assert {"grinning face", "red apple", "heavy black heart", "dog face", "clock face three oclock"} <= set(names)
    assert all(name == name.lower().strip() != "" for name in names)


@needs_font
def test_pieces_of_emoji_are_left_out():
    words = " ".join(name for name, _ in emoji.emoji(16))
    for piece in ("regional indicator", "modifier", "component", "digit", "combining", "selector", "tag"):
        assert piece not in words.replace("stage", "").replace("bookmark tabs", "").split(), piece
        assert f"emoji {piece}" not in words


@needs_font
@pytest.mark.parametrize("size", [16, 32, 64])
def test_pictures_are_square_rgb_on_white_and_differ(size):
    pictures = np.stack([picture for _, picture in emoji.emoji(size)])
    assert pictures.dtype == np.uint8 and pictures.shape[1:] == (size, size, 3)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert (pictures < 230).any(-1).mean((1, 2)).min() > 0.01  # each shows something
    assert np.median(pictures[:, 0, 0]) == 255


@needs_font
def test_colours_are_the_known_ones():
    known = dict(emoji.emoji(32))
    for name, channel in (("large red circle", 0), ("large green circle", 1), ("large blue circle", 2)):
        assert known[name][16, 16].argmax() == channel, name
    assert known["medium black circle"][16, 16].max() < 90


def test_the_same_font_gives_the_same_list(font):
    first = emoji.emoji(24)
    emoji._drawn.cache_clear()
    emoji._glyphs.cache_clear()
    again = emoji.emoji(24)
    assert [name for name, _ in first] == [name for name, _ in again]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))


@needs_font
def test_pairs_hold_picture_and_name():
    made = list(emoji.pairs(16))
    assert len(made) == len(emoji.emoji(16))
    picture, text = made[7].parts
    name, pixels = emoji.emoji(16)[7]
    assert isinstance(picture, Image) and isinstance(text, Text) and text.text == name
    assert np.array_equal(picture.content.array, pixels)


@needs_font
def test_nearest_finds_an_emoji_under_noise_and_agrees_with_the_plain_distance():
    pictures = np.stack([picture for _, picture in emoji.emoji(32)])
    index = np.arange(0, len(pictures), 40)
    noise = np.random.default_rng(0).normal(0, 25, pictures[index].shape)
    noisy = np.clip(pictures[index] + noise, 0, 255).astype(np.uint8)
    found = emoji.nearest(noisy)
    plain = [((pictures.astype(np.int64) - one) ** 2).sum((1, 2, 3)).argmin() for one in noisy.astype(np.int64)]
    assert found.tolist() == plain
    assert (found == index).all()


def test_without_the_font_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(emoji.FONT_VARIABLE, raising=False)
    with pytest.raises(emoji.FontMissing, match="fonts-noto-color-emoji"):
        emoji.find_font((str(tmp_path),))


def test_the_font_can_be_named_by_the_environment(tmp_path, monkeypatch, font):
    monkeypatch.setenv(emoji.FONT_VARIABLE, str(font))
    assert emoji.find_font(()) == font
    monkeypatch.setenv(emoji.FONT_VARIABLE, str(tmp_path / "absent.ttf"))
    with pytest.raises(emoji.FontMissing, match=r"absent\.ttf"):
        emoji.emoji(16)


def test_a_font_without_bitmaps_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "NotoColorEmoji.ttf"
    other.write_bytes(b"not a font")
    monkeypatch.setenv(emoji.FONT_VARIABLE, str(other))
    with pytest.raises(emoji.FontMissing, match="CBDT"):
        emoji.emoji(16)
