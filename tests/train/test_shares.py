import numpy as np
import pytest

from unimm.config.check import ConfigError
from unimm.config.data import Use
from unimm.config.stages import NextToken, Reconstruct
from unimm.train.shares import shares

MIX = (Use(data="d"),)


def stage(**changes) -> NextToken:
    return NextToken(mix=MIX, steps=1, **changes)


def test_one_number_is_divided_and_printed_as_an_equation():
    cut = shares(stage(step_tokens=65536, seq_len=1024, micro=8), world=2)
    assert str(cut) == "65,536 tokens a step = 2 ranks x 4 accumulated x 8 rows x 1,024 tokens"
    cut = shares(Reconstruct(mix=MIX, steps=1, batch=64, micro=5), world=2)
    assert str(cut) == "64 images a step = 2 ranks x 8 accumulated x 4 images"


@pytest.mark.parametrize("micro", range(13))
@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_accumulation_is_the_smallest_that_keeps_to_micro_and_loses_no_row(world, micro):
    cut = shares(stage(step_tokens=120, seq_len=10, micro=micro), world)
    assert cut.ranks * cut.accumulated * cut.rows == 12 and cut.total == 120
    assert micro == 0 or cut.rows <= micro
    fewer = [n for n in range(1, cut.accumulated) if 12 // world % n == 0]
    assert all(12 // world // n > micro > 0 for n in fewer)
    rows = np.arange(12).reshape(world, -1)
    seen = [(number, slot.tolist()) for rank in range(world) for number, slot in cut.slots(rows[rank], rank).items()]
    assert [number for number, _ in seen] == list(range(world * cut.accumulated))
    assert sum((slot for _, slot in seen), []) == list(range(12))


def test_numbers_that_can_not_be_are_refused_with_the_nearest_that_can():
    with pytest.raises(ConfigError, match="NextToken.step_tokens is 1000; .*multiple of seq_len .128.: 896 or 1,024"):
        stage(step_tokens=1000, seq_len=128)
    with pytest.raises(ConfigError, match="step_tokens is 1,024, which 3 processes .*: 768 or 1,152"):
        shares(stage(step_tokens=1024, seq_len=128), 3)
    with pytest.raises(ConfigError, match="batch is 8, which 16 processes can't share evenly.*: 16"):
        shares(Reconstruct(mix=MIX, steps=1, batch=8), 16)


@pytest.mark.parametrize("wrong, said", [
    ({"micro": -1}, "micro is -1"), ({"ema": 1.0}, "ema is 1.0"), ({"offload": True}, "set zero to 1, 2 or 3"),
    ({"compile": True, "zero": 3}, "set zero to 2 or less")])
def test_fields_that_exclude_each_other_are_refused_with_the_remedy(wrong, said):
    with pytest.raises(ConfigError, match=said):
        stage(**wrong)
