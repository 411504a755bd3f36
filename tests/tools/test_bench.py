"""The benchmarks' own rules: unequal results are refused, every module and part runs, the page shows its JSON."""

import json
import math
import sys
import time

import pytest
import torch

from tools import gpu_check, gpu_parts, performance
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
        next(step.compare(step.TOY[0], 1))


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


@pytest.mark.parametrize("name", bench.NAMES)
def test_every_module_of_the_bench_runs_at_toy_size(name):
    found = bench.run(name, toy=True)
    assert found and all(row.ours > 0 and row.theirs > 0 and row.peer and row.wanted for row in found)


@pytest.mark.parametrize("part", ["attention", "loss"])
def test_kernels_and_losses_of_the_gpu_check_equal_their_references_on_the_cpu(part):
    timed = [value for value in gpu_parts.part(part, toy=True).values() if isinstance(value, dict)]
    assert len(timed) >= 2 and all(value["ms"] > 0 for value in timed)


def test_the_gpu_check_runs_our_loop_and_trainer_to_the_same_losses():
    found = {part: gpu_check.run(part, 120, toy=True) for part in ("step 0.5b zero0", "step 0.5b trainer")}
    ours, theirs = found.values()
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], rel=gpu_check.SAME)
    assert "x Trainer" in gpu_check.table(found)


def test_a_part_that_fails_or_hangs_costs_only_itself():
    assert "ValueError: nonsense" in gpu_check.run("nonsense", 60, toy=True)["error"]
    assert gpu_check.run("attention", 0.1, toy=True) == {"error": "not done after 0 s"}
    found = {"attention": {"error": "not done after 0 s"}, "loss": {"full logits": {"ms": 1.0, "gib": 8.0},
                                                                    "one pass": {"ms": 1.0, "gib": 1.0}}}
    assert "| attention | failed | not done after 0 s |" in gpu_check.table(found)
    assert "8.0x less" in gpu_check.table(found)


def test_runs_of_other_losses_are_not_called_faster():
    values = {"ms_per_step": 10.0, "tokens_per_second": 100.0, "mfu": None, "peak_gib": 1.0, "losses": [5.0]}
    slow = values | {"ms_per_step": 20.0}
    found = {"step 0.5b zero1": values, "step 0.5b trainer": slow}
    assert "2.00x Trainer" in gpu_check.table(found)
    found["step 0.5b trainer"] = slow | {"losses": [6.0]}
    assert "LOSSES DIFFER" in gpu_check.table(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_check_says_so_and_ends_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2 and "no CUDA device" in capsys.readouterr().err


def test_the_page_shows_the_figures_of_its_json():
    page = (performance.DOCS / "performance.md").read_text()
    kept = json.loads((performance.DOCS / "performance.json").read_text())
    assert performance.BEGIN + performance.figures(kept) + performance.END in page


def test_new_figures_replace_only_their_own(tmp_path):
    (tmp_path / "performance.md").write_text(f"before\n{performance.BEGIN}old\n{performance.END}after\n")
    row = vars(rows.faster("claim", "peer", 1.0, 2.0, "s", 1))
    about = {"date": "2026-01-01", "cores": 2}
    for name in ("one", "two"):
        performance.write(bench={name: {"machine": about, "rows": [row]}}, docs=tmp_path)
    parts = {"loss": {"full logits": {"ms": 1.5, "gib": 8.0}, "seconds": 3.0}}
    performance.write(gpu={"machine": about | {"gpu": "H200"}, "parts": parts}, docs=tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    assert page.count("| claim | 1 | 2 | s | peer | 2.00x | >= 1x | holds |") == 2
    assert "### H200" in page and "1.50 ms" in page and "not yet" not in page.lower()
