"""What a metrics line tells beside averages."""

import json
import math

import numpy as np
import pytest
import torch
from train_toys import Regression, Spoilt, stage, train

from unimm.sample import Batch
from unimm.train import ranks
from unimm.train.loop import Work, run_stage
from unimm.train.metrics import Meter, evenness

ZEROS = np.zeros((2, 50), np.int64)


def batch(seed: int) -> Batch:
    """Ids of two codebooks, 100..107 and 108..119, and others; only some are image targets that are learned."""
    random = np.random.default_rng(seed)
    targets = random.integers(95, 125, (2, 50)) * random.integers(0, 2, (2, 50))
    return Batch(ZEROS, targets, random.random((2, 50)) < 0.7, ZEROS, ZEROS + 1, random.random((2, 50)) < 0.8)


def expected(batches: list[Batch], start: int, stop: int) -> tuple[float, float]:
    """Entropy in bits and share used, by a loop over all targets and torch's own entropy."""
    seen: dict[int, int] = {}
    for each in batches:
        for target, learn, image in zip(each.targets.flat, each.learn.flat, each.image.flat):
            if learn and image and start <= target < stop:
                seen[int(target)] = seen.get(int(target), 0) + 1
    bits = torch.distributions.Categorical(torch.tensor(list(seen.values())) / sum(seen.values())).entropy()
    return float(bits) / math.log(2), len(seen) / (stop - start)


def test_code_entropy_and_use_are_those_of_the_window_s_learned_image_targets():
    counts = Meter({"a": (100, 108), "b": (108, 120)})
    for window in ([0, 1, 2], [3]):
        for seed in window:
            counts.see(batch(seed))
        line = counts.line()
        for name, ids in (("a", (100, 108)), ("b", (108, 120))):
            bits, used = expected([batch(seed) for seed in window], *ids)
            assert line[f"codes/{name}/entropy"] == pytest.approx(bits, abs=1e-5)
            assert line[f"codes/{name}/used"] == used
    assert not any(name.startswith("codes") for name in counts.line())  # an empty window says nothing


def test_the_bounds_of_entropy():
    assert evenness(9 * np.eye(8, dtype=int)[2]) == {"entropy": 0.0, "used": 1 / 8}
    assert evenness(np.full(8, 5)) == {"entropy": 3.0, "used": 1.0}


def learn(m: Meter, **counts: int) -> None:
    """Losses of 2.5 each of so many tokens."""
    for part, count in counts.items():
        m.add(f"loss/{part}", torch.tensor(2.5 * count), count)
        m.add("loss", 2.5 * count, torch.tensor(count))


def test_a_window_that_a_checkpoint_cuts_is_counted_whole_after_a_resume():
    whole, first, second = (Meter({"a": (100, 108)}) for _ in range(3))
    for m in (whole, first):
        learn(m, text=7, image=3)
        m.line()
        learn(m, text=1, image=1)
    whole.see(batch(0))
    whole.see(batch(1))
    first.see(batch(0))
    second.restore(json.loads(json.dumps(first.state())))
    second.see(batch(1))
    lines = []
    for m in (second, whole):
        learn(m, text=1, image=0)
        lines.append({name: value for name, value in m.line().items() if name not in ("seconds", "tokens_per_second")})
    line = lines[0]
    assert line == lines[1] and line["loss/text"] == 2.5
    assert line["learned/text"] == 9 and line["learned/image"] == 4 and "learned/loss" not in line


def packed(*rows: list[int]) -> Batch:
    """Rows of documents of these lengths, in 12 positions; the last half of every document is learned."""
    position, document, learn = np.zeros((3, len(rows), 12), np.int64)
    for r, lengths in enumerate(rows):
        ends = np.cumsum(lengths)
        for n, (length, end) in enumerate(zip(lengths, ends), 1):
            position[r, end - length:end], document[r, end - length:end] = np.arange(length), n
            learn[r, end - length // 2:end] = 1
    return Batch(document, document, learn > 0, position, document, learn < 0)


def test_mfu_is_logged_only_where_the_peak_and_the_cost_are_known():
    assert "mfu" not in Meter({}, lambda document, learned: 6e9).line()
    assert "mfu" not in Meter({}, peak=1e15).line()
    known = Meter({}, lambda document, learned: 6e9, 1e15)
    known.tokens += 50_000
    line = known.line()
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 6e9 / 1e15, rel=1e-4) and line["mfu"] > 0


def mfu_per_token(meter: Meter) -> float:
    meter.tokens += 1000
    line = meter.line()
    return line["mfu"] / line["tokens_per_second"]


def test_mfu_counts_the_documents_and_the_learned_tokens_of_its_window():
    meter = Meter({}, lambda document, learned: 1000 * document + learned, 1.0)
    meter.see(packed([4, 6], [2]))
    meter.see(packed([8]))
    expected = 1000 * (16 + 36 + 4 + 64) / 20 + 10 / 20
    assert mfu_per_token(meter) == pytest.approx(expected, rel=1e-4)
    meter.see(packed([12]))
    assert mfu_per_token(meter) == pytest.approx(12_000 + 0.5, rel=1e-4)


def test_a_run_logs_the_mfu_of_a_device_whose_peak_is_known(tmp_path, monkeypatch):
    work = Work(Regression(), Spoilt([]), flops=lambda: lambda document, learned: 3e9)
    run_stage(work, stage(steps=2), tmp_path / "cpu", engine="plain")
    monkeypatch.setattr(ranks, "device_name", lambda: "NVIDIA H200")
    run_stage(work._replace(batches=Spoilt([])), stage(steps=2), tmp_path / "h200", engine="plain")
    cpu, h200 = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
                 for name in ("cpu", "h200"))
    assert not any("mfu" in line for line in cpu) and len(h200) == 2
    for line in h200:
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 3e9 / 989.4e12, rel=1e-4)


def test_a_run_logs_what_it_learned_from_and_waited_for_and_skipped_steps_teach_nothing(tmp_path):
    train(tmp_path / "lm", log_every=4)
    lines = [json.loads(line) for line in (tmp_path / "lm" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    learned = [line["learned/text"] + line["learned/image"] for line in lines]
    assert 0 < learned[0] < learned[1] < learned[2] < lines[2]["tokens"]
    assert all(0 <= line["seconds/data"] <= line["seconds"] for line in lines)
    assert "seconds/save" not in lines[0] and lines[1]["seconds/save"] > 0  # saved after step 4's line
    run_stage(Work(Regression(), Spoilt([5])), stage(), tmp_path / "bad", engine="plain")
    lines = [json.loads(line) for line in (tmp_path / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert [line["learned/all"] for line in lines] == [8 * n for n in (1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11)]
    assert [line["skipped"] for line in lines] == [0] * 5 + [1] * 7 and lines[-1]["tokens"] == 12 * 8
