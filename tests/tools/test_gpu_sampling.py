"""Image decode in the check of a GPU, tried on the CPU: every batch has its time and its limit."""

import pytest

from tools import gpu_check, gpu_parts, samplers
from unimm.config.model import FreshBackbone


def test_image_decode_of_the_gpu_check_is_timed_at_every_batch_beside_its_limit():
    found = {"sampling 0.5b": gpu_check.run("sampling 0.5b", 120, toy=True)}
    for batch in gpu_parts.BATCHES:
        assert found["sampling 0.5b"][f"batch {batch}"]["ms"] > found["sampling 0.5b"][f"batch {batch}"]["limit_ms"] > 0
    told = gpu_check.table(found)
    assert "0.5b, batch 64" in told and "wanted of an H200 <= 0.60 ms" in told and "wanted >= 10x" in told


def test_the_limit_of_a_step_counts_weights_once_and_keys_and_values_of_every_row():
    world = samplers.world(FreshBackbone(width=32, layers=2, heads=4, kv_heads=2, mlp=64), 300, 64, ((3, 3),))
    ask = samplers.Ask(samplers.caption(), (3, 3), 3.0)
    one, two, six = (gpu_parts.at_least(world, ask, rows, 14) for rows in (1, 2, 6))
    assert six - two == pytest.approx(4 * (two - one))
    cache = (len(world.prompt(ask)[0]) + 7) * 2 * 2 * 2 * 8  # two layers, keys and values, two heads of 8
    assert two - one == pytest.approx(4 * cache / gpu_parts.bandwidth() * 1e3)
    layers = sum(p.numel() for name, p in world.model.named_parameters() if ".layers." in name)
    assert one - (two - one) == pytest.approx(4 * (layers + 32 + 64 * 32) / gpu_parts.bandwidth() * 1e3)
