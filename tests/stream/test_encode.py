"""Encoding once: the same bytes after any interruption, by any number of processes."""

import io
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from unimm.disk import DiskError
from unimm.pictures import fit
from unimm.sample import Codes, Image, Pixels, Sample, Text, sample
from unimm.stream import encode as encoding
from unimm.stream.encode import Plan
from unimm.stream.shards import ShardError, open_shards
from unimm.stream.sources import Item

PLAN = Plan(source={"kind": "test"}, fingerprint="abc", size=256, pixels=4, rows=5, batch=3)
encode = partial(encoding.encode, prepare=partial(fit, size=PLAN.pixels))
ROOT = Path(__file__).resolve().parents[2]


def to_codes(images):
    """A tokenizer whose codes are the red channel."""
    return [Codes.of_grid(image[:, :, 0]) for image in images]


def item(key, found):
    return Item(key, lambda: found)


def rows():
    """23 pairs, with bad rows, texts alone and samples of two images among them."""
    for n in range(23):
        picture = Image(Pixels(np.full((6, 4 + n % 3, 3), n, np.uint8)))
        match n % 7:
            case 2:
                yield item(f"row {n}", f"row {n}: not an image")
            case 3:
                yield item(f"row {n}", sample(Text(f"text {n}", learn=True)))
            case 5:
                answer = replace(picture, learn=True, role="assistant")
                yield item(f"row {n}", sample(replace(picture, role="user"), answer))
            case _:
                yield item(f"row {n}", sample(picture, Text(f"number {n}")))


def content(folder):
    """Every file but for scratch, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of one undisturbed encode."""
    folder = tmp_path_factory.mktemp("encode") / "whole"
    encode(rows(), to_codes, PLAN, folder)
    return folder


def test_every_usable_row_is_kept_in_order_and_the_others_are_listed_with_reasons(whole):
    shards = open_shards(whole, "abc")
    good = {row.key: row.read() for row in rows() if not isinstance(row.read(), str)}
    assert [shards.key(i) for i in range(len(shards))] == [*good]
    for (key, made), kept in zip(good.items(), shards, strict=True):
        value = int(key.split()[1])
        assert [p for p in kept.parts if isinstance(p, Text)] == [p for p in made.parts if isinstance(p, Text)]
        assert [i.content for i in kept.images] == [Codes.of_grid(np.full((4, 4), value))] * len(made.images)
    counts = shards.manifest["counts"]
    assert counts == {"rows": 23, "samples": 20, "images": 20, "codes": 320, "skipped": 3}
    assert shards.manifest["problems"][0] == {"key": "row 2", "why": "row 2: not an image"}
    assert shards.manifest["finished"] and shards.manifest["source"] == {"kind": "test"}
    assert [s["samples"] for s in shards.manifest["shards"]] == [4, 4, 5, 4, 3]


class Power(Exception):
    """The end of a process, at a place of our choice."""


@pytest.mark.parametrize("stop", range(0, 23, 2))
def test_an_encode_stopped_at_any_row_ends_with_the_same_bytes(whole, tmp_path, stop):
    def until_stop():
        for n, item in enumerate(rows()):
            if n == stop:
                raise Power
            yield item

    with pytest.raises(Power):
        encode(until_stop(), to_codes, PLAN, tmp_path)
    encode(rows(), to_codes, PLAN, tmp_path)
    assert content(tmp_path) == content(whole)


CHILD = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("helpers", sys.argv[1]); helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
folder, rank, world, fatal = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
calls = 0
def to_codes(images):
    global calls
    calls += 1
    if calls == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return helpers.to_codes(images)
helpers.encode(helpers.rows(), to_codes, helpers.PLAN, folder, rank=rank, world=world)
"""


def start(folder, rank=0, world=1, fatal=0):
    arguments = [sys.executable, "-c", CHILD, __file__, str(folder), str(rank), str(world), str(fatal)]
    return subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_process_killed_in_the_middle_goes_on_and_ends_with_the_same_bytes(whole, tmp_path):
    assert start(tmp_path, fatal=5).wait() == -signal.SIGKILL
    assert 1 <= len(list(tmp_path.glob("*.arrow"))) < 5
    with pytest.raises(ShardError, match="unfinished encode"):
        open_shards(tmp_path, "abc")
    assert start(tmp_path).wait() == 0
    assert content(tmp_path) == content(whole)


def test_two_processes_one_killed_and_restarted_write_what_one_would(whole, tmp_path):
    first, second = start(tmp_path, 0, 2, fatal=3), start(tmp_path, 1, 2)
    assert (first.wait(), second.wait()) == (-signal.SIGKILL, 0)
    assert not (tmp_path / "manifest.json").exists()
    assert start(tmp_path, 0, 2).wait() == 0
    assert content(tmp_path) == content(whole)


def test_the_process_that_ends_last_writes_the_manifest_whichever_it_is(whole, tmp_path):
    assert encode(rows(), to_codes, PLAN, tmp_path, rank=0, world=2) is None
    assert encode(rows(), to_codes, PLAN, tmp_path, rank=1, world=2)["counts"]["samples"] == 20
    assert content(tmp_path) == content(whole)


def test_a_finished_folder_is_left_alone_and_a_damaged_shard_alone_is_redone(whole, tmp_path):
    def never(images):
        raise AssertionError("nothing is left to encode")

    manifest = encode(rows(), to_codes, PLAN, tmp_path)
    assert encode(rows(), never, PLAN, tmp_path) == manifest
    (tmp_path / "codes-00003.arrow").write_bytes(b"torn")
    seen = []
    encode(rows(), lambda images: seen.extend(images) or to_codes(images), PLAN, tmp_path)
    assert [int(image[0, 0, 0]) for image in seen] == [15, 18, 19, 19] and content(tmp_path) == content(whole)


def test_a_source_that_changed_under_a_half_done_encode_is_refused(tmp_path):
    encode(rows(), to_codes, PLAN, tmp_path, rank=0, world=2)
    shifted = list(rows())[1:]
    with pytest.raises(ShardError, match="the source changed since .*codes-00000.arrow was encoded; delete"):
        encode(shifted, to_codes, PLAN, tmp_path)


def test_no_row_is_decoded_that_is_done_or_belongs_to_another_process(tmp_path):
    asked = []

    def spied():
        for n, row in enumerate(rows()):
            yield Item(row.key, lambda n=n, row=row: asked.append(n) or row.read())

    encode(spied(), to_codes, PLAN, tmp_path, rank=1, world=2)
    assert asked == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]
    asked.clear()
    encode(spied(), to_codes, PLAN, tmp_path)
    assert asked == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22]


def test_a_folder_of_another_plan_is_refused(whole):
    other = Plan(**{**vars(PLAN), "fingerprint": "xyz", "pixels": 8})
    with pytest.raises(ShardError, match=r"other settings \(fingerprint, pixels\); choose another folder"):
        encode(rows(), to_codes, other, whole)


def test_a_source_without_a_usable_row_is_refused_with_the_first_reason(tmp_path):
    with pytest.raises(ShardError, match="no usable row among 2; the first: torn"):
        encode([item("a", "torn"), item("b", "gone")], to_codes, PLAN, tmp_path)


def test_an_unwritable_folder_and_a_full_disk_are_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="can't write .*/file/codes: Not a directory; free the disk or choose"):
        encode(rows(), to_codes, PLAN, tmp_path / "file" / "codes")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "codes-00000.arrow.tmp").symlink_to("/dev/full")
    with pytest.raises(DiskError, match="can't write .*codes-00000.arrow: No space left on device"):
        encode(rows(), to_codes, PLAN, tmp_path / "full")
    assert not (tmp_path / "full" / "codes-00000.arrow").exists()


def test_a_bar_around_the_items_counts_every_row_as_it_is_worked_on(tmp_path):
    bar, seen = tqdm(rows(), total=23, file=io.StringIO(), miniters=1, mininterval=0), []
    encode(bar, lambda images: seen.append(bar.n) or to_codes(images), PLAN, tmp_path)
    assert bar.n == 23 and seen == sorted(seen) and len(set(seen)) > 5


def test_images_of_several_samples_share_a_batch_and_no_batch_crosses_a_shard(tmp_path):
    sizes = []
    encode(rows(), lambda images: sizes.append(len(images)) or to_codes(images), PLAN, tmp_path)
    assert sizes == [3, 3, 2, 3, 2, 3, 1, 3]


def test_images_are_brought_to_the_tokenizers_size_before_it_sees_them(tmp_path):
    shapes = set()
    encode(rows(), lambda images: shapes.update(i.shape for i in images) or to_codes(images), PLAN, tmp_path)
    assert shapes == {(4, 4, 3)}
    assert all(isinstance(s, Sample) for s in open_shards(tmp_path, "abc"))
