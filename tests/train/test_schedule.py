import math

import pytest

from unimm.config.stages import Schedule
from unimm.train.optimizer import multiplier


def test_warmup_hold_and_linear_anneal_at_known_steps():
    schedule = Schedule(warmup=0.1, anneal=0.5, final=0.2)
    at = {step: multiplier(schedule, step, 100) for step in range(101)}
    assert at[0] == pytest.approx(0.1) and at[4] == pytest.approx(0.5) and at[9] == 1.0
    assert all(at[step] == 1.0 for step in range(9, 51))
    assert at[75] == pytest.approx(0.6) and at[99] == pytest.approx(0.216) and at[100] == pytest.approx(0.2)


def test_a_cosine_anneal_is_half_way_in_the_middle_and_flat_at_both_ends():
    schedule = Schedule(warmup=0.0, anneal=1.0, shape="cosine")
    assert multiplier(schedule, 0, 100) == 1.0
    assert multiplier(schedule, 50, 100) == pytest.approx(0.5)
    assert multiplier(schedule, 25, 100) == pytest.approx(0.8535534)
    assert 1 - multiplier(schedule, 1, 100) < 0.001 and multiplier(schedule, 99, 100) < 0.001


def test_no_step_is_wasted_on_a_rate_of_zero():
    for warmup, anneal, steps in ((0.0, 0.0, 7), (0.02, 0.4, 10), (0.5, 0.5, 3), (1.0, 0.0, 4), (0.0, 1.0, 1)):
        for shape in ("linear", "cosine"):
            schedule = Schedule(warmup=warmup, anneal=anneal, shape=shape)
            assert all(0 < multiplier(schedule, step, steps) <= 1 for step in range(steps))


def test_a_constant_rate_half_a_cosine_and_warm_up_stable_decay_are_each_one_schedule():
    constant = Schedule(warmup=0.0, anneal=0.0)
    assert {multiplier(constant, step, 50) for step in range(50)} == {1.0}
    cosine = Schedule(warmup=0.1, anneal=0.9, shape="cosine", final=0.1)
    for step in range(10, 100):  # as in GPT-3 and after: half a wave from the end of the rise to the last step
        want = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert multiplier(cosine, step, 100) == pytest.approx(want)
    stable = Schedule(warmup=0.1, anneal=0.2)
    at = [multiplier(stable, step, 100) for step in range(100)]
    assert at[:10] == pytest.approx([n / 10 for n in range(1, 11)]) and set(at[9:81]) == {1.0}
    assert at[80:] == pytest.approx([1 - n / 20 for n in range(20)])
