"""The check of a GPU, tried on the CPU: its references, its table, what a failing part costs."""

import sys

import pytest
import torch

from tools import gpu_check, gpu_parts


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
