"""Words as pictures: originals are read, and the more is lost the fewer."""

import numpy as np

from data.words_world import SIZES, WORDS, read, render


def share(pictures, size) -> float:
    return np.mean([a == b for a, b in zip(read(pictures, size), WORDS)])


def halved(picture, times):
    """Averaged over squares and blown up again, which is what a coarse tokenizer does to letters."""
    side = len(picture) // times
    small = picture.reshape(side, times, side, times, 3).mean((1, 3))
    return small.repeat(times, 0).repeat(times, 1).astype(np.uint8)


def test_every_word_is_read_from_its_own_picture_and_lies_inside_it_at_any_size():
    for side in (32, 64, 256):
        for size in SIZES:
            pictures = [render(word, size, side) for word in WORDS]
            assert share(pictures, size) == 1 and len({p.tobytes() for p in pictures}) == len(WORDS)
            assert {(p.shape, p.dtype.name) for p in pictures} == {((side, side, 3), "uint8")}
            frames = [np.concatenate([p[0], p[-1], p[:, 0], p[:, -1]]) for p in pictures]
            assert max(frame.max() for frame in frames) == 0 and min(p.max() for p in pictures) > 150


def test_brightness_does_not_matter_and_a_black_picture_says_nothing():
    for size in SIZES:
        assert share([render(word, size) // 3 + 40 for word in WORDS], size) == 1
        assert share([np.zeros((32, 32, 3), np.uint8)] * len(WORDS), size) == 1 / len(WORDS)


def test_small_letters_are_lost_before_large_ones():
    lost = {size: share([halved(render(word, size), 8) for word in WORDS], size) for size in SIZES}
    assert lost[SIZES[0]] < lost[SIZES[-1]] < 1
    assert all(share([halved(render(word, size), 2) for word in WORDS], size) > lost[size] for size in SIZES)
