from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.stream.batches import LOOKAHEAD, Lane, best_subset


class Document:
    def __init__(self, index, length):
        self.index, self.length = index, length

    def __len__(self):
        return self.length


def lane(lengths, room, first=0, step=1) -> Lane:
    """Over these lengths again and again; documents that are too long are left out."""
    def draw(index):
        length = int(lengths[index % len(lengths)])
        return Document(index, length) if length <= room else None

    return Lane(draw, first, step, room)


def unequal(count=3000, most=8192):
    """Text with a long tail beside images of one size, as a mixture brings them."""
    rng = np.random.default_rng(0)
    text = rng.lognormal(5.3, 1.0, count).astype(int).clip(8, most)
    return np.where(rng.random(count) < 0.5, min(1026, most), text)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=8), room=st.integers(0, 120))
def test_the_best_subset_is_what_trying_all_of_them_finds(lengths, room):
    chosen = best_subset(lengths, room)
    every = [sum(some) for n in range(len(lengths) + 1) for some in combinations(lengths, n)]
    assert sum(lengths[n] for n in chosen) == max(total for total in every if total <= room)
    assert chosen == sorted(set(chosen))


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=40), room=st.integers(40, 80), step=st.integers(1, 3))
def test_no_document_is_lost_repeated_or_kept_waiting_and_no_row_overflows(lengths, room, step):
    if min(lengths) > room:
        return
    packed = lane([*lengths, 1, 1], room, first=1, step=step)
    seen = Counter()
    for _ in range(30):
        oldest = next(iter(packed.waiting), None)
        row = packed.row()
        assert 0 < sum(map(len, row)) <= room
        assert oldest is None or oldest == row[0].index  # so none waits longer than there are others that wait
        assert len(packed.waiting) <= LOOKAHEAD
        seen.update(document.index for document in row)
    left_out = sum(lane([*lengths, 1, 1], room).draw(index) is None for index in range(1, packed.next, step))
    seen.update(list(packed.waiting))
    assert set(seen.values()) == {1} and packed.dropped == left_out
    assert len(seen) + left_out == len(range(1, packed.next, step))


@pytest.mark.parametrize("room", [256, 2048, 8192])
def test_rows_of_text_with_a_long_tail_are_full_whether_short_or_long(room):
    lengths = np.random.default_rng(0).lognormal(5.3, 1.0, 3000).astype(int).clip(8, room // 2)
    packed = lane(lengths, room)
    fill = [sum(map(len, packed.row())) / room for _ in range(300)]
    assert np.mean(fill) > (0.999 if room > 256 else 0.99)


def test_text_beside_images_fills_rows_of_8192_and_the_longest_document_comes_in_its_turn():
    lengths = unequal()
    lengths[500] = 8192  # nothing fits beside it
    packed = lane(lengths, 8192)
    rows = [packed.row() for _ in range(250)]
    assert np.mean([sum(map(len, row)) / 8192 for row in rows]) > 0.999
    # Neighbours of it are drawn with it: it may stay behind them by no more rows than documents wait at a time.
    place = {document.index: n for n, row in enumerate(rows) for document in row}
    assert place[500] - place[499] <= LOOKAHEAD


def test_a_lane_goes_on_exactly_from_its_state():
    whole, again = lane(unequal(), 1100), lane(unequal(), 1100)
    for _ in range(7):
        whole.row()
    again.restore(whole.state())
    assert len(whole.state()) <= LOOKAHEAD + 2
    for _ in range(20):
        assert [d.index for d in whole.row()] == [d.index for d in again.row()]
    assert whole.state() == again.state() and whole.dropped > 0
