"""The two engines in one process: one curve, clipping, what they refuse."""

import json

import pytest
from train_toys import Regression, explode, moved, stage

from unimm.config.stages import AdamW
from unimm.train.engine import Engine, deepspeed_config


def test_deepspeed_gives_the_plain_engine_s_curve_clips_and_refuses_nan(toys, tmp_path, plain_curves):
    toys.run("deepspeed", tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("lm", "regression", "muon", "bf16"):
        assert found[name] == plain_curves[name], name
    refused = {name: held for name, held in found.items() if name.startswith("refuses")}
    assert len(refused) == 4 and all(refused.values()), refused
    for zero in (0, 1):
        check_clipping(found[f"clip 1000000000.0 at zero {zero}"], found[f"clip 1e-09 at zero {zero}"])


def check_clipping(free: tuple[float, float], clipped: tuple[float, float]):
    """Adam's first step is `lr` long at any scale, unless the gradient is far below its eps of 1e-8."""
    assert clipped[0] == pytest.approx(free[0]) and free[0] > 1  # the norm before clipping, both times
    assert free[1] == pytest.approx(0.01, rel=1e-3)
    assert 0 < clipped[1] < 0.002


def test_the_plain_engine_clips():
    seen = []
    for limit in (1e9, 1e-9):
        module = Regression()
        seen.append(moved(Engine(module, stage(optimizer=AdamW(lr=0.01, clip=limit))), module))
    check_clipping(*seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_before_the_step(bad):
    module = Regression()
    assert explode(Engine(module, stage()), module, bad) and all(p.grad is None for p in module.parameters())


def test_the_deepspeed_configuration_follows_the_stage():
    config = deepspeed_config(stage(zero=2, precision="bf16", optimizer=AdamW(clip=0.7)), world=4, parameters=1000)
    assert config["train_batch_size"] == 8 and config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_clipping"] == 0.7 and config["bf16"]["enabled"]
    assert config["zero_optimization"]["stage"] == 2
    assert "bf16" not in deepspeed_config(stage(precision="bf16"), world=1, parameters=1000)  # autocast instead
