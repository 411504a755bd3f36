"""Packing keeps documents apart and loses none; the stream goes on exactly, at any number of processes."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream.streams import LIQUID, Named, pair, pairs, stage
from ten_systems import TEN, content

from unimm.config.check import ConfigError
from unimm.config.data import Use
from unimm.layout import LayoutError
from unimm.sample import Codes, Image, Sample, Text
from unimm.stream.batches import LOOKAHEAD, Batches, TooLong
from unimm.stream.mixture import Mixture

ROOT = Path(__file__).resolve().parents[2]
DATA = {"d": pairs(60)}
MIX = (Use(data="d", task="t2i", weight=2.0), Use(data="d", task="caption"))


def batches(stage, data=DATA, layout=LIQUID, rank=0, world=1, **more):
    return Batches(Mixture(data, stage.mix, stage.seed), layout, stage, rank, world, **more)


def fields(batch):
    return [batch.ids, batch.targets, batch.learn, batch.position, batch.document, batch.image]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(fields(a), fields(b), strict=True)) and a.samples == b.samples


def documents(batch):
    """(row, first position, ids, targets, learn, position, image) of every document, cut out by its number."""
    for row, numbers in enumerate(batch.document):
        for number in range(1, numbers.max() + 1):
            at = np.flatnonzero(numbers == number)
            assert (np.diff(at) == 1).all()
            arrays = (batch.ids, batch.targets, batch.learn, batch.position, batch.image)
            yield row, at[0], *(array[row, at] for array in arrays)


def numbers(batch, layout=LIQUID):
    """The number each document's text tells, through the layout's own reading."""
    return [int(part.text) for _, _, ids, *_ in documents(batch) for part in layout.parse(ids).parts
            if isinstance(part, Text)]


@settings(max_examples=25, deadline=None)
@given(seq_len=st.integers(40, 150), rows=st.integers(1, 5), seed=st.integers(0, 9))
def test_documents_stay_apart_and_targets_are_their_own_next_ids(seq_len, rows, seed):
    stream = batches(stage(seq_len=seq_len, rows=rows, seed=seed, mix=MIX))
    for _ in range(3):
        batch = stream.next()
        assert all(a.shape == (rows, seq_len) for a in fields(batch))
        found = 0
        for _, _, ids, targets, learn, position, image in documents(batch):
            found += 1
            assert ids[0] == LIQUID.bos and ids[-1] == LIQUID.eos and (ids[1:-1] != LIQUID.eos).all()
            assert (position == np.arange(len(ids))).all()
            assert (targets[:-1] == ids[1:]).all() and not learn[-1] and not image[-1]
            assert (image[:-1] == LIQUID.vocab.is_code[ids[1:]]).all() and image.sum() == 9
        assert found == batch.samples
        padding = batch.document == 0
        assert (batch.ids[padding] == LIQUID.pad_id).all() and not batch.learn[padding].any()
        assert batch.ids.min() >= 0 and batch.targets.min() >= 0  # -100 is never an input


def test_a_document_in_a_batch_is_what_the_layout_renders():
    mixture = Mixture(DATA, MIX, 0)
    stream = batches(stage(mix=MIX))
    wanted = {}
    for index in range(400):
        sequence = LIQUID.render(mixture[index][1])
        wanted[tuple(sequence.ids.tolist())] = sequence.learn[1:].tolist()
    for _ in range(5):
        for _, _, ids, _, learn, *_ in documents(stream.next()):
            assert wanted[tuple(ids.tolist())] == learn[:-1].tolist()


@settings(max_examples=15, deadline=None)
@given(rows=st.sampled_from([1, 2, 3, 6]), seq_len=st.integers(40, 200), seed=st.integers(0, 99))
def test_every_sample_of_an_epoch_comes_exactly_once(rows, seq_len, seed):
    """Lanes run at their own pace, so an epoch is cut out of the stream by index: what came and what still waits."""
    count = 60
    stream = batches(stage(rows=rows, seq_len=seq_len, seed=seed))
    seen = Counter()
    while min(lane.next for lane in stream.lanes) < count + rows:
        seen.update(numbers(stream.next()))
    mixture = Mixture(DATA, stream.stage.mix, seed)
    drawn = Counter()
    for lane in stream.lanes:
        for index in range(lane.next)[stream.lanes.index(lane)::rows]:
            number = int(mixture[index][1].parts[0].text)
            drawn[number] += 1
            seen[number] += index in lane.waiting
    assert seen == drawn and set(seen) == set(range(count))


def test_the_oldest_document_is_never_passed_over_for_longer_than_the_lookahead():
    data = {"d": Named(pair(n, 3 if n % 5 else 45) for n in range(500))}
    stream = batches(stage(rows=1, seq_len=64), data)
    for _ in range(60):
        oldest = next(iter(stream.lanes[0].waiting), 0)
        stream.next()
        assert oldest not in stream.lanes[0].waiting
        assert len(stream.lanes[0].waiting) <= LOOKAHEAD


@pytest.mark.parametrize("seq_len", [100, 500])
def test_rows_short_and_long_are_nearly_full_for_as_long_as_the_stream_runs(seq_len):
    stream = batches(stage(rows=1, seq_len=seq_len, mix=MIX))  # documents of 16 to 33 tokens
    fill = [(stream.next().document > 0).mean() for _ in range(60)]
    assert np.mean(fill[:20]) > 0.98 and np.mean(fill[40:]) > 0.98


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_stream_restored_from_json_goes_on_as_if_never_stopped(steps):
    spec = stage(mix=MIX, drop_context=0.3, seq_len=50, too_long="drop")
    whole, stopped = batches(spec), batches(spec)
    for _ in range(steps):
        whole.next(), stopped.next()
    state = json.loads(json.dumps(stopped.state()))
    stopped.next()
    fresh = batches(spec)
    fresh.restore(state)
    assert [lane.dropped for lane in fresh.lanes] == [lane.dropped for lane in whole.lanes]
    for _ in range(5):
        assert equal(whole.next(), fresh.next())
    assert len(json.dumps(whole.state())) < 2000


def side_by_side(spec, world):
    """All ranks of a world in one process; `gather` sees what they put down."""
    ranks = []

    def gather(_):
        return [[[lane.next, lane.dropped, *lane.waiting] for lane in r.lanes] for r in ranks]

    ranks += [batches(spec, rank=rank, world=world, gather=gather) for rank in range(world)]
    return ranks


def joined(parts):
    return replace(parts[0], **{name: np.concatenate([getattr(p, name) for p in parts])
                                for name in ("ids", "targets", "learn", "position", "document", "image")},
                   samples=sum(p.samples for p in parts))


def test_the_world_may_change_from_one_to_two_to_four_and_back_without_a_difference():
    spec = stage(mix=MIX, drop_context=0.2)
    alone, state = batches(spec), None
    for world in (1, 2, 4, 1, 2):
        ranks = side_by_side(spec, world)
        for rank in ranks if state else ():
            rank.restore(json.loads(json.dumps(state)))
        for _ in range(4):
            assert equal(alone.next(), joined([rank.next() for rank in ranks]))
        state = ranks[-1].state()
        assert state == alone.state() == ranks[0].state()


CHILD = """
import json, sys
import torch.distributed as dist
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from stream.test_batches import MIX, batches, stage
rank, world, store, out = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
def gather(own):
    every = [None] * world
    dist.all_gather_object(every, own)
    return every
stream = batches(stage(mix=MIX), rank=rank, world=world, gather=gather)
ids = [stream.next().ids.tolist() for _ in range(3)]
with open(f"{out}/{rank}.json", "w") as file:
    json.dump({"ids": ids, "state": stream.state()}, file)
from unimm.train import ranks
ranks.leave()  # the interpreter's teardown aborts one gloo process in seven
"""


def test_two_real_processes_hold_the_halves_and_know_the_whole_state(tmp_path):
    command = [sys.executable, "-c", CHILD, str(ROOT)]
    more = ["2", str(tmp_path / "store"), str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank), *more]) for rank in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = batches(stage(mix=MIX))
    both = [a + b for a, b in zip(first["ids"], second["ids"], strict=True)]
    assert both == [alone.next().ids.tolist() for _ in range(3)]
    assert first["state"] == second["state"] == alone.state()


def test_rows_that_the_processes_cannot_share_are_refused():
    with pytest.raises(ConfigError, match="step_tokens is 256 = 4 rows, .* 3 processes .*multiple of 3 x 64"):
        batches(stage(), world=3)


@pytest.mark.parametrize("change", [{"rows": 2}, {"seq_len": 70}, {"seed": 1}, {"mix": MIX}, {"drop_context": 0.5}])
def test_a_state_of_another_stream_is_refused(change):
    state = batches(stage()).state()
    with pytest.raises(ConfigError, match="the checkpoint's data stream was another: .* was .*, is"):
        batches(stage(**change)).restore(state)
    with pytest.raises(ConfigError, match="uses was"):
        batches(stage(), {"d": pairs(59)}).restore(state)


def test_a_sample_longer_than_a_row_is_refused_by_name_and_lengths():
    data = {"d": Named([pair(0, 60)])}
    with pytest.raises(TooLong, match="sample 0 is 73 tokens long, a row is 64; raise seq_len, or set too_long"):
        batches(stage(), data).next()
    assert len(LIQUID.render(Mixture(data, stage().mix, 0)[0][1])) == 73
    assert batches(stage(seq_len=73), data).next().samples == 4


def test_samples_that_are_too_long_are_dropped_whole_and_counted():
    data = {"d": Named(pair(n, 60 if n % 4 == 0 else 5) for n in range(40))}
    stream = batches(stage(rows=1, too_long="drop"), data)
    seen = Counter()
    while stream.lanes[0].next < 400:
        seen.update(numbers(stream.next()))
    assert set(seen) == {n for n in range(40) if n % 4}
    left_out = {f"sample {n}" for n in range(0, 40, 4)}
    mixture, lane = Mixture(data, stage().mix, 0), stream.lanes[0]
    assert lane.dropped == sum(mixture[i][0] in left_out for i in range(lane.next))


def test_a_dataset_in_which_nothing_fits_ends_with_a_message_and_not_in_a_loop():
    with pytest.raises(TooLong, match="1000 samples in a row were longer than 64 tokens.*raise seq_len"):
        batches(stage(too_long="drop"), {"d": Named([pair(0, 60)])}).next()


def test_the_share_of_documents_without_their_context_is_the_stages_and_captions_keep_theirs():
    data = {"d": Named(pair(n, 3) for n in range(200))}
    bare = LIQUID.render(Sample((Text("x"), Image(Codes.of_grid(np.zeros((3, 3))), True))), unconditional=True).ids[:2]
    shares = {}
    for task in ("t2i", "caption"):
        stream = batches(stage(mix=(Use(data="d", task=task),), drop_context=0.25, rows=8, seq_len=200), data)
        found = [(ids[:2] == bare).all() for _ in range(8) for _, _, ids, *_ in documents(stream.next())]
        found += [(document.ids[:2] == bare).all() for lane in stream.lanes for document in lane.waiting.values()]
        shares[task] = np.mean(found)
    assert abs(shares["t2i"] - 0.25) < 0.06 and shares["caption"] == 0


@pytest.mark.parametrize("name", ["fqgan", "janus", "ming_univision", "illume_plus"])
def test_slots_move_with_their_documents_and_image_positions_are_marked(name):
    layout, rng = TEN[name].build(), np.random.default_rng(0)
    data = {"d": Named(Sample((Text(f"{n:05d}", learn=True), Image(content(name, rng, True), learn=True)))
                       for n in range(20))}
    by_text = {sample.parts[0].text: sample for sample in data["d"]}
    stream = batches(stage(mix=(Use(data="d"),), seq_len=150, rows=3), data, layout)
    for _ in range(3):
        batch = stream.next()
        for row, start, ids, _, learn, _, image in documents(batch):
            slots = tuple(replace(s, start=s.start - start) for r, s in batch.slots
                          if r == row and start <= s.start < start + len(ids))
            read = layout.parse(ids, np.concatenate([[False], learn[:-1]]), slots)
            assert read == by_text[read.parts[0].text]
            inside = layout.vocab.is_code[ids]
            for slot in slots:
                inside[slot.start : slot.start + slot.length] = True
            assert inside.any() and (image[:-1] == inside[1:]).all()


def test_an_image_that_the_layout_cannot_write_is_refused_by_key():
    data = {"d": Named([Sample((Image(Codes.of_grid(np.zeros((5, 5)))), Text("big")))])}
    with pytest.raises(LayoutError, match="sample 0: an image of 25 positions"):
        batches(stage(), data).next()
