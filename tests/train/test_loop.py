"""One loop, in this process, with the plain engine."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_toys import Regression, Stream, ToyLM, curve, outcome, stage, train

from unimm.checkpoint import write
from unimm.checkpoint.folders import CheckpointError
from unimm.checkpoint.read import load_weights, read_state
from unimm.config.stages import Guards
from unimm.disk import DiskError
from unimm.train.engine import NotFinite
from unimm.train.loop import Work, run_stage
from unimm.train.signals import Interrupted

DROPOUT = {"objective": "regression", "dropout": 0.3, "log_every": 5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 12 steps that nothing disturbed; its checkpoints are those of steps 8 and 12."""
    return train(tmp_path_factory.mktemp("whole"), **DROPOUT)


def test_both_objectives_learn(tmp_path):
    for objective in ("lm", "regression"):
        train(tmp_path / objective, objective, steps=60, save_every=100)
        losses = curve(tmp_path / objective)
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_metrics_are_flat_json_lines_with_text_and_image_apart(tmp_path):
    train(tmp_path, log_every=4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12, 12]  # previews at 5, 10 and the end
    for line in (line for line in lines if "loss" in line):
        assert {"seconds", "lr", "loss", "loss/text", "loss/image", "tokens", "tokens_per_second",
                "grad_norm"} <= line.keys()
        assert all(isinstance(value, int | float) for value in line.values())
    assert lines[2]["tokens"] == 8 * 8 * 5 and list((tmp_path / "tensorboard").iterdir())


def test_logged_losses_are_averages_over_what_was_counted_not_over_batches(tmp_path):
    train(tmp_path, log_every=12)
    seen = {"text": [0.0, 0], "image": [0.0, 0]}

    class Watched(ToyLM):
        def forward(self, batch):
            losses = super().forward(batch)
            for name, (value, count) in losses.parts.items():
                seen[name][0] += float(value)
                seen[name][1] += int(count)
            return losses

    run_stage(Work(Watched(), Stream("lm")), stage(log_every=12), tmp_path / "watched", engine="plain")
    for name, (value, count) in seen.items():
        assert curve(tmp_path, f"loss/{name}") == [pytest.approx(value / count)]


def test_a_run_cut_between_metrics_lines_continues_bit_for_bit_random_numbers_and_stream_included(tmp_path, whole):
    train(tmp_path, **DROPOUT).rename(tmp_path / "away")  # leaves that of step 8
    seen = []
    assert outcome(train(tmp_path, at=seen.append, **DROPOUT)) == outcome(whole)
    assert seen == [8, 9, 10, 11]


def test_a_preview_does_not_change_what_is_learned(tmp_path):
    learned = []
    for preview in (None, lambda step: {"draw": torch.rand(3).sum().item()}):
        module = Regression(dropout=0.3)
        run_stage(Work(module, Stream("regression"), preview), stage(), tmp_path / str(preview is None), engine="plain")
        assert module.training
        learned.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*learned)


def test_a_damaged_newest_checkpoint_is_reported_kept_and_an_older_one_used(tmp_path, whole, capsys):
    newest = train(tmp_path, **DROPOUT)
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 4
    weights.write_bytes(content)
    capsys.readouterr()
    again = train(tmp_path, **DROPOUT)
    said = capsys.readouterr().out
    assert f"{weights} is damaged: its checksum differs; kept as step-00000012.damaged" in said
    assert "continuing after step 8" in said
    assert (tmp_path / "step-00000012.damaged" / "model.safetensors").read_bytes() == content
    assert outcome(again) == outcome(whole)


def test_a_finished_stage_is_not_run_again_but_gives_its_checkpoint(tmp_path, capsys):
    module, other = ToyLM(), ToyLM()
    path = run_stage(Work(module, Stream("lm")), stage(), tmp_path, engine="plain")
    assert run_stage(Work(ToyLM(), Stream("lm", lambda i: pytest.fail("trained"))), stage(), tmp_path) == path
    load_weights(path, other)
    assert torch.equal(module.embed.weight, other.embed.weight)
    assert "already done" in capsys.readouterr().out


def test_only_the_newest_checkpoints_and_every_nth_are_kept(tmp_path):
    train(tmp_path, save_every=2, keep=2, keep_every=6)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000006", "step-00000010", "step-00000012"]


def test_a_run_whose_disk_fills_up_stops_with_the_bytes_and_continues_once_there_is_room(tmp_path, whole, monkeypatch):
    free = iter([10**9, 7])  # at the first save, at the second
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    with pytest.raises(CheckpointError, match=r"step-00000008: the disk is full; it takes [\d,]+ bytes, 7 were free"):
        train(tmp_path, **DROPOUT)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000004"]
    monkeypatch.undo()
    assert outcome(train(tmp_path, **DROPOUT)) == outcome(whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_saves_nothing(tmp_path, bad):
    class Failing(ToyLM):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls == 7:
                self.before = self.embed.weight.detach().clone()
            losses = super().forward(batch)
            return losses if self.calls < 7 else type(losses)(losses.total * bad, losses.parts)

    module = Failing()
    with pytest.raises(NotFinite, match=r"step 7: loss is (nan|inf) on rank 0; no weight was changed"):
        run_stage(Work(module, Stream("lm")), stage(guards=Guards(skips_in_row=1)), tmp_path, engine="plain")
    assert torch.equal(module.embed.weight, module.before)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000004"]


def test_a_checkpoint_of_another_model_or_stage_is_refused(tmp_path):
    path = train(tmp_path, steps=4)
    with pytest.raises(CheckpointError, match="is of another model"):
        train(tmp_path, "regression")
    with pytest.raises(CheckpointError, match="saved by stage 'train', this is 'sft'"):
        run_stage(Work(ToyLM(), Stream("lm")), stage(), tmp_path, name="sft", engine="plain")
    assert read_state(path)["step"] == 4


def test_a_changed_recipe_is_pointed_out_on_continuing(tmp_path, capsys):
    run_stage(Work(ToyLM(), Stream("lm"), recipe={"name": "a"}), stage(steps=4), tmp_path, engine="plain")
    run_stage(Work(ToyLM(), Stream("lm"), recipe={"name": "a"}), stage(steps=8), tmp_path, engine="plain")
    assert "recipe differs" not in capsys.readouterr().out
    run_stage(Work(ToyLM(), Stream("lm"), recipe={"name": "b"}), stage(steps=12), tmp_path, engine="plain")
    assert "recipe differs" in capsys.readouterr().out


def test_a_folder_that_can_not_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="can't write .*file/run"):
        train(tmp_path / "file" / "run")


def test_a_signal_that_comes_while_a_batch_is_awaited_ends_the_run_with_that_step(tmp_path):
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, at=lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 5 else None)
    assert stopped.value.path.name == "step-00000006"
