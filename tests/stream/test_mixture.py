"""Order is a pure function of the seed; weights and epochs hold to the sample."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream.streams import Named, pairs

from unimm.config.check import ConfigError
from unimm.config.data import Use
from unimm.sample import Codes, Image, Sample, Text
from unimm.stream.mixture import WINDOW, Mixture, random_order
from unimm.stream.tasks import TaskError, as_task, can_drop_context

CODES = Codes.of_grid([[1, 2], [3, 4]])
PAIR = Sample((Image(CODES), Text("a cat")))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_every_row_comes_exactly_once_in_every_epoch(length, seed):
    order = random_order([length], [1.0], seed)
    for epoch in (0, 1, 7):
        assert sorted(order[epoch * length + i].row for i in range(length)) == list(range(length))


def test_epochs_and_seeds_differ_in_order_and_nothing_else_does():
    orders = [[random_order([50], [1.0], seed)[start + i].row for i in range(50)]
              for seed, start in ((3, 0), (3, 50), (4, 0), (2, 50))]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == [random_order([50], [1.0], 3)[i].row for i in range(50)]


def test_weights_hold_in_every_window_and_each_use_still_runs_epoch_by_epoch():
    order = random_order([40, 30, 300], [5.0, 2.5, 2.5], seed=1)
    for window in range(2):
        drawn = [order[window * WINDOW + i] for i in range(WINDOW)]
        assert [Counter(p.use for p in drawn)[use] for use in range(3)] == pytest.approx([512, 256, 256], abs=1)
    drawn = [order[i] for i in range(2 * WINDOW)]
    for use, length in ((0, 40), (1, 30), (2, 300)):
        seen = Counter(place.row for place in drawn if place.use == use)
        assert len(seen) == length and max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("rows", [2, 4, 16])
def test_a_lane_that_takes_every_nth_index_sees_all_uses(rows):
    order = random_order([1000, 1000], [1.0, 1.0], seed=0)
    for lane in range(rows):
        share = sum(order[lane + n * rows].use for n in range(200)) / 200
        assert 0.3 < share < 0.7


def test_two_uses_of_one_dataset_do_not_draw_the_same_rows_at_the_same_time():
    order = random_order([2000, 2000], [1.0, 1.0], seed=0)
    drawn = [order[i] for i in range(WINDOW)]
    first, second = ({place.row for place in drawn if place.use == use} for use in range(2))
    assert len(first) == len(second) == WINDOW // 2
    assert len(first & second) < 200  # by chance 131 of 512; in step all 512


def test_a_dataset_without_samples_is_refused_by_name():
    with pytest.raises(ConfigError, match="data 'empty' has no samples"):
        Mixture({"empty": Named()}, (Use(data="empty"),), seed=0)


def test_chances_are_even_and_belong_to_their_index():
    mixture = Mixture({"d": pairs(10)}, (Use(data="d", task="t2i"),), seed=5)
    chances = [mixture.chance(i) for i in range(2000)]
    assert chances == [mixture.chance(i) for i in range(2000)]
    assert abs(sum(c < 0.1 for c in chances) / 2000 - 0.1) < 0.03


@pytest.mark.parametrize("made", [PAIR, Sample(PAIR.parts[::-1])])
def test_a_pair_becomes_what_its_task_says_in_whichever_order_it_came(made):
    assert as_task("t2i", "k", made) == Sample((Text("a cat"), Image(CODES, learn=True)))
    assert as_task("caption", "k", made) == Sample((Image(CODES), Text("a cat", learn=True)))
    assert as_task("draw", "k", made) == Sample((Text("a cat", role="user"), Image(CODES, True, "assistant")))


def test_tasks_refuse_what_they_cannot_use_by_name():
    with pytest.raises(TaskError, match="k: task 't2i' takes one image and one text, this sample is text"):
        as_task("t2i", "k", Sample((Text("alone", learn=True),)))
    with pytest.raises(TaskError, match="k: nothing in it is learned"):
        as_task("as_is", "k", PAIR)


def test_only_samples_that_end_in_a_learned_image_can_drop_their_context():
    assert can_drop_context(as_task("t2i", "k", PAIR)) and can_drop_context(as_task("draw", "k", PAIR))
    assert not can_drop_context(as_task("caption", "k", PAIR))
    assert not can_drop_context(Sample((Image(CODES, learn=True),)))
