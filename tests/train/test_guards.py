"""Steps that are refused, losses that leap, and what is kept of the batches that did it."""

import json
import math
from collections import deque

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_toys import Regression, Spoilt, Stream, curve, stage

from unimm.checkpoint.read import newest, read_state
from unimm.config.check import ConfigError
from unimm.config.stages import Guards as Limits
from unimm.config.stages import Schedule
from unimm.disk import read_sealed
from unimm.losses import Losses
from unimm.sample import Batch, Slot
from unimm.train.engine import NotFinite
from unimm.train.guards import Guards, save_batch, spike
from unimm.train.loop import Work, run_stage

OFF = Limits(spike=0)

pytestmark = pytest.mark.filterwarnings("error")


def run(folder, stream, limits=OFF, **changes) -> Regression:
    module = Regression()
    run_stage(Work(module, stream), stage(guards=limits, **changes), folder, engine="plain")
    return module


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def training_state(folder) -> list[bytes]:
    """The bytes of weights and optimizer in the newest checkpoint: their files hold nothing else that moves."""
    return tensors_of(newest(folder))


def tensors_of(path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.glob("*.safetensors"))]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_batch_is_skipped_and_the_run_goes_on_as_if_it_had_never_been_there(tmp_path, bad):
    # The schedule is of the number of steps, so the two of them share only a constant one.
    flat = {"schedule": Schedule(warmup=0.0, anneal=0.0), "save_every": 6}
    skipped = run(tmp_path / "flat", Spoilt([5], bad), steps=12, **flat)
    without = run(tmp_path / "without", Spoilt(without=[5]), steps=11, **flat)
    assert same(skipped, without)
    assert training_state(tmp_path / "flat") == training_state(tmp_path / "without")
    assert curve(tmp_path / "flat") == curve(tmp_path / "without")
    assert curve(tmp_path / "flat", "skipped") == [0] * 5 + [1] * 7
    state = read_state(tmp_path / "flat" / "step-00000012")
    assert state["step"] == 12 and state["stream"] == {"i": 12} and state["guards"]["skipped"] == 1


def test_a_skipped_step_moves_no_bit_of_weights_or_optimizer_nor_the_schedule(tmp_path):
    run(tmp_path, Spoilt([5]), steps=12, save_every=1, keep=12)
    before, after = (tmp_path / f"step-{n:08d}" for n in (5, 6))
    assert tensors_of(before) == tensors_of(after) and len(tensors_of(after)) == 2
    assert tensors_of(after) != tensors_of(tmp_path / "step-00000007")
    run(tmp_path / "plain", Spoilt(), steps=12)
    assert curve(tmp_path, "lr")[6:] == curve(tmp_path / "plain", "lr")[5:11]


def test_a_run_cut_after_a_skipped_step_continues_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", Spoilt([5]), save_every=7)
    (tmp_path / "whole" / "step-00000012").rename(tmp_path / "end")
    assert same(run(tmp_path / "whole", Spoilt([5]), save_every=7), whole)
    assert curve(tmp_path / "whole", "skipped") == [0] * 5 + [1] * 7


@pytest.mark.parametrize(("limits", "bad", "last"), [(Limits(skips_in_row=3, spike=0), (2, 5, 6, 7), 8),
                                                     (Limits(skips=3, spike=0), (1, 3, 5, 7), 6)])
def test_the_set_number_of_bad_steps_stops_the_run_with_the_batch_in_a_file(tmp_path, capsys, limits, bad, last):
    shown = {"rows": ["a red circle"]}
    work = Work(Regression(), Spoilt(bad), show=lambda batch: shown)
    told = rf"train, step {last}: .*nan on rank 0.*bad-batches/step-0000000{last}"
    with pytest.raises(NotFinite, match=told) as error:
        run_stage(work, stage(guards=limits), tmp_path, engine="plain")
    assert "\n" not in str(error.value) and "guards.skips" in str(error.value)
    assert capsys.readouterr().out.count("no weight was changed") == [b < last for b in bad].count(True)
    facts = json.loads((tmp_path / "bad-batches" / f"step-0000000{last}-rank-00000.json").read_text())
    assert facts["batch"] == last - 1 and facts["rows"] == ["a red circle"] and facts["losses"][0]["loss"] == "nan"
    assert facts["losses"][0]["parts"]["all"] == {"sum": "nan", "count": 8.0}
    arrays = load_file(tmp_path / "bad-batches" / f"step-0000000{last}-rank-00000.safetensors")
    assert arrays["x"].shape == (8, 6) and bool(arrays["x"].isnan().all()) and bool(arrays["y"].isfinite().all())


def test_a_packed_batch_is_kept_whole_with_slots_and_a_gradient_alone_names_no_loss(tmp_path, capsys):
    ids = np.arange(6).reshape(2, 3)
    slot = Slot(1, 2, "pixels", True, np.array([[7], [8]], np.int32))
    batch = Batch(ids, ids + 1, ids > 2, ids, ids, ids > 4, ((1, slot),), 2)
    losses = Losses(torch.tensor(1.5), {"text": (torch.tensor(3.0), torch.tensor(2))})
    guards = Guards(Limits(), tmp_path, "sft")
    guards.draw(Stream("regression"))
    guards.skip(4, "the gradient norm is inf", batch, [losses])
    assert "sft, step 4: the gradient norm is inf; no weight" in capsys.readouterr().out
    stem = tmp_path / "bad-batches" / "step-00000004-rank-00000"
    arrays, facts = load_file(stem.with_suffix(".safetensors")), json.loads(stem.with_suffix(".json").read_text())
    assert np.array_equal(arrays["ids"], ids) and arrays["learn"].dtype == torch.bool
    assert arrays["slots.0.1.payload"].tolist() == [[7], [8]]
    assert facts["values"] == {"slots.0.0": 1, "slots.0.1.start": 1, "slots.0.1.length": 2,
                               "slots.0.1.space": "pixels", "slots.0.1.learn": True, "samples": 2}
    assert facts["why"] == "the gradient norm is inf" and facts["losses"][0]["parts"]["text"]["sum"] == 3.0


def test_a_batch_that_is_one_array_is_kept_too(tmp_path):
    save_batch(tmp_path / "new" / "it", np.ones((2, 2), np.uint8), [], {})
    assert load_file(tmp_path / "new" / "it.safetensors")["batch"].dtype == torch.uint8


def test_files_of_skipped_batches_do_not_pile_up(tmp_path):
    guards = Guards(Limits(skips_in_row=1000, skips=30), tmp_path, "train")
    losses = [Losses(torch.tensor(math.nan))]
    for step in range(1, 30):
        guards.skip(step, "", np.ones(1), losses)
    with pytest.raises(NotFinite):
        guards.skip(30, "", np.ones(1), losses)
    kept = sorted(int(path.name[5:13]) for path in (tmp_path / "bad-batches").glob("*.json"))
    assert kept == [*range(1, 21), 30]


def test_a_spike_is_what_numpy_s_median_and_mad_say():
    random = np.random.default_rng(0)
    losses = [*random.normal(3, 0.1, 40), 9.0, *random.normal(3, 0.1, 40), 3.9]
    seen = deque(maxlen=16)
    for i, loss in enumerate(losses):
        before = np.array(losses[max(0, i - 16):i])
        bound = spike(loss, seen, 6)
        if i < 16:
            assert bound is None
            continue
        want = np.median(before) + 6 * 1.4826 * np.median(np.abs(before - np.median(before)))
        assert (bound is not None) == (loss > want)
        assert bound is None or bound == pytest.approx(want)
    assert spike(1e9, deque(maxlen=8), 0) is None


def test_a_loss_without_any_deviation_does_not_spike_at_its_last_digit():
    seen = deque(maxlen=8)
    found = [spike(loss, seen, 10) for loss in (*[2.0] * 8, 2.0001, 1.0, 2.5)]
    assert [bound is not None for bound in found] == [False] * 10 + [True]


def test_a_level_that_changed_for_good_is_ordinary_after_half_a_window():
    seen = deque(maxlen=8)
    found = [spike(loss, seen, 10) is not None for loss in [1.0, 1.1] * 4 + [5.0, 5.1] * 4]
    assert found == [False] * 8 + [True] * 4 + [False] * 4


ROLL = Limits(spike=10, spike_window=8, rollbacks=2, rollback_batches=2)
LONG = {"steps": 24, "save_every": 10, "keep": 3}


def test_after_a_rollback_the_run_is_bit_for_bit_one_that_never_saw_the_bad_batches(tmp_path, capsys):
    rolled = run(tmp_path / "rolled", Spoilt([15], 40.0), ROLL, **LONG)
    clean = run(tmp_path / "clean", Spoilt(without=[14, 15]), ROLL, **LONG)
    assert same(rolled, clean)
    assert curve(tmp_path / "rolled") == curve(tmp_path / "clean") and len(curve(tmp_path / "rolled")) == 24
    assert training_state(tmp_path / "rolled") == training_state(tmp_path / "clean")
    assert curve(tmp_path / "rolled", "rollbacks")[-1] == 1
    said = capsys.readouterr().out
    assert "step 16: the loss leapt to" in said and "leaving out batches 14 to 15 (rollback 1 of 2)" in said
    # Without the rollback the bad batch does show.
    hurt = run(tmp_path / "hurt", Spoilt([15], 40.0), Limits(spike=10, spike_window=8), **LONG)
    assert not same(hurt, clean) and curve(tmp_path / "hurt", "spikes")[-1] >= 1


class Counting(Regression):
    """With a buffer that every forward moves, as a codebook of averages."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, batch):
        self.seen.lerp_(torch.as_tensor(batch.x).mean(0), 0.5)
        return super().forward(batch)


def test_a_rollback_brings_back_what_is_no_parameter_too(tmp_path):
    seen = []
    for stream in (Spoilt([15], 40.0), Spoilt(without=[14, 15])):
        path = run_stage(Work(Counting(), stream), stage(guards=ROLL, **LONG), tmp_path / str(len(seen)),
                         engine="plain")
        seen.append(load_file(path / "model.safetensors")["seen"])
    assert torch.equal(*seen) and seen[0].abs().max() > 0


def test_a_run_killed_after_its_rollback_leaves_the_same_batches_out_when_it_continues(tmp_path):
    whole = run(tmp_path / "whole", Spoilt([15], 40.0), ROLL, **LONG)

    class Killed(Exception):
        pass

    class Fatal(Spoilt):
        def next(self):
            if self.i == 18:  # given out only after the rollback
                raise Killed
            return super().next()

    with pytest.raises(Killed):
        run(tmp_path / "cut", Fatal([15], 40.0), ROLL, **LONG)
    assert max(path.name for path in (tmp_path / "cut").glob("step-????????")) == "step-00000010"
    assert read_sealed(tmp_path / "cut" / "rollbacks.json")["condemned"] == [[14, 15]]
    again = run(tmp_path / "cut", Spoilt([15], 40.0), Limits(spike=0, rollback_batches=2), **LONG)
    assert same(again, whole) and curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_a_spike_at_the_step_that_is_to_be_saved_is_found_before(tmp_path):
    changes = LONG | {"save_every": 8}
    rolled = run(tmp_path / "rolled", Spoilt([15], 40.0), ROLL, **changes)
    assert same(rolled, run(tmp_path / "clean", Spoilt(without=[14, 15]), ROLL, **changes))
    assert sorted(path.name for path in (tmp_path / "rolled").glob("step-*"))[:2] == ["step-00000008", "step-00000016"]


def test_rollbacks_end_with_their_number_and_without_a_checkpoint_the_run_goes_on(tmp_path, capsys):
    once = Limits(spike=10, spike_window=8, rollbacks=1, rollback_batches=1)
    run(tmp_path / "once", Spoilt([12, 18], 40.0), once, **LONG)
    assert curve(tmp_path / "once", "rollbacks")[-1] == 1
    assert "all 1 rollbacks are used up" in capsys.readouterr().out
    run(tmp_path / "none", Spoilt([9], 40.0), once, **LONG)
    assert "no checkpoint to go back to; going on" in capsys.readouterr().out


def test_impossible_guards_are_refused():
    with pytest.raises(ConfigError, match="Guards.rollbacks is 1; it must be 0 where spike is 0"):
        Limits(spike=0, rollbacks=1)
    with pytest.raises(ConfigError, match="Guards.skips_in_row is 0"):
        Limits(skips_in_row=0)
    with pytest.raises(ConfigError, match="Guards.end_when_late is True"):
        Limits(late_seconds=0, end_when_late=True)
