"""The benchmarks' own rules: unequal results are refused, clocks count what they should, modules run."""

import math
import sys
import time

import pytest
import torch

from tools.bench import __main__ as bench
from tools.bench import rows, step


def test_results_that_differ_are_refused_before_anything_is_timed():
    rows.equal("losses", [1.0, 2.0], torch.tensor([1.0, 2.0 + 5e-6]), 1e-5)
    with pytest.raises(rows.Unequal, match="losses: 2e-05 apart"):
        rows.equal("losses", [1.0, 2.0], [1.0, 2.0 + 2e-5], 1e-5)
    with pytest.raises(rows.Unequal, match="nan apart"):
        rows.equal("losses", [1.0, math.nan], [1.0, math.nan], 1e-5)
    with pytest.raises(rows.Unequal, match="shapes"):
        rows.equal("losses", [1.0, 2.0], [1.0], 1e-5)


def test_a_peer_of_other_weights_gets_no_row(monkeypatch):
    monkeypatch.setattr(step, "alone", lambda run: run())
    monkeypatch.setattr(step, "ours", lambda *given: step.Run([4.0, 3.0], []))
    monkeypatch.setattr(step, "theirs", lambda *given: step.Run([4.0, 3.1], []))
    with pytest.raises(rows.Unequal, match="ours and Trainer"):
        next(step.compare(step.TOY[0]))


def test_the_time_counted_is_that_of_this_process_and_its_children_not_the_neighbours():
    def busy():
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    ours, theirs = rows.interleaved(lambda: None, busy, repeats=2)
    assert ours < 0.05 <= theirs
    before = rows.cpu_seconds()
    rows.alone(busy)
    assert rows.cpu_seconds() - before >= 0.05


def test_a_child_that_dies_is_told_and_leaves_nothing_behind():
    found = []
    assert rows.alone(lambda: found.append(1) or 7) == 7 and not found
    with pytest.raises(RuntimeError, match="died before"):
        rows.alone(lambda: sys.exit(3))


def test_a_row_holds_or_not_by_what_was_wanted_of_it():
    assert rows.faster("x", "y", 1.0, 2.0, "s", 2).holds and not rows.faster("x", "y", 1.0, 1.9, "s", 2).holds
    assert rows.at_most("x", "y", 1.05, 1.0, "s", 1.1).holds and not rows.at_most("x", "y", 1.2, 1.0, "s", 1.1).holds
    assert rows.more("x", "y", 4.0, 2.0, "tokens/s", 2).holds and not rows.more("x", "y", 1.0, 2.0, "s", 2).holds
    assert rows.within("x", "y", 0.91, 1.0, "bytes", 10).holds and not rows.within("x", "y", 1.2, 1.0, "b", 10).holds
    assert "MISSED" in rows.table([rows.faster("x", "y", 1.0, 1.9, "s", 2)])


def test_a_step_costs_what_its_cheapest_stretch_does_and_requests_ahead_are_no_steps():
    run = step.Run([], [0.0, 0.1, 5.0, 6.0, 7.0, 8.0, 10.0])
    assert run.per_step(2) == 1.0


@pytest.mark.parametrize("name", sorted({*bench.NAMES} - {"step", "zero", "sampling"}))  # files of their own
def test_every_module_of_the_bench_runs_at_toy_size(name):
    found = bench.run(name, toy=True)
    assert found and all(row.ours > 0 and row.theirs > 0 and row.peer and row.wanted for row in found)
