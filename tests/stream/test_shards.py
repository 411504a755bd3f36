"""Codes on disk: exact round trips, files that others can open, and refusals that name the remedy."""

import json

import numpy as np
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.disk import read_sealed, write_sealed
from unimm.sample import Codes, Image, Level, Text, sample
from unimm.stream.shards import ShardError, code_type, from_json, open_shards, to_json, write_shard

roles = st.just(st.none()) | st.just(st.sampled_from(["system", "user", "assistant"]))


@st.composite
def levels(draw, size):
    depth = draw(st.integers(1, 3))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    n = rows * columns * depth
    ids = draw(st.lists(st.integers(0, size - 1), min_size=n, max_size=n))
    return Level(np.reshape(ids, (rows * columns, depth)), draw(st.sampled_from([None, (rows, columns)])))


@st.composite
def samples(draw, size):
    role = draw(roles)
    texts = st.builds(Text, st.text(min_size=1, max_size=8), st.booleans(), role)
    codes = st.builds(Codes, st.lists(levels(size), min_size=1, max_size=2).map(tuple))
    images = st.builds(Image, codes, st.booleans(), role)
    return sample(*draw(st.lists(texts | images, min_size=1, max_size=5)))


def finished(folder, *shards, size=512, fingerprint="abc"):
    """A folder of codes made by hand: each shard a list of (key, sample)."""
    facts = [write_shard(folder / f"codes-{n:05d}.arrow", rows, size) for n, rows in enumerate(shards)]
    write_sealed(folder / "manifest.json", {"fingerprint": fingerprint, "shards": facts})
    return folder


def grid(*ids):
    return Image(Codes.of_grid(np.reshape(ids, (2, 2))), learn=True)


TWO = [("a", sample(Text("one"), grid(1, 2, 3, 4))), ("b", sample(Text("zwei", learn=True)))]


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([2, 512, 65536, 200_000]), data=st.data())
def test_samples_of_any_levels_depth_grid_and_roles_come_back_equal(tmp_path_factory, size, data):
    rows = data.draw(st.lists(samples(size), max_size=5))
    named = [(f"key {n} ü", row) for n, row in enumerate(rows)]
    folder = finished(tmp_path_factory.mktemp("codes"), named[:2], [], named[2:], size=size)
    shards = open_shards(folder, "abc")
    assert [(shards.key(i), shards[i]) for i in range(len(shards))] == named


def test_a_code_of_70000_does_not_wrap_and_small_vocabularies_take_two_bytes(tmp_path):
    wide = sample(grid(70_000, 65_535, 65_536, 0))
    assert open_shards(finished(tmp_path, [("k", wide)], size=70_001), "abc")[0] == wide
    assert [code_type(n) for n in (512, 65_536, 65_537)] == [np.uint16, np.uint16, np.uint32]


def test_a_code_outside_the_vocabulary_is_refused_by_key(tmp_path):
    with pytest.raises(ShardError, match="picture 7: code 512 is outside the tokenizer's 0 .. 511"):
        write_shard(tmp_path / "codes-00000.arrow", [("picture 7", sample(grid(0, 1, 2, 512)))], 512)
    assert list(tmp_path.iterdir()) == []


def test_pandas_and_datasets_open_the_files_as_they_are(tmp_path):
    from datasets import load_dataset

    file = finished(tmp_path, TWO) / "codes-00000.arrow"
    frame = pandas.read_feather(file)
    assert frame.key.tolist() == ["a", "b"]
    assert frame.codes[0].dtype == np.uint16 and frame.codes[0].tolist() == [1, 2, 3, 4]
    loaded = load_dataset("arrow", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["codes"] == [1, 2, 3, 4] and loaded[1]["levels"] == []
    content = json.loads(loaded[0]["sample"])["messages"][0]["content"]
    assert content == [{"type": "text", "text": "one", "learn": False}, {"type": "image", "index": 0, "learn": True}]


def test_codes_are_read_through_the_memory_map_without_a_copy(tmp_path):
    folder, before = finished(tmp_path, TWO[:1], TWO[1:]), pyarrow.total_allocated_bytes()
    shards = open_shards(folder, "abc")
    codes = shards.table["codes"][0].values.to_numpy()
    assert not codes.flags.owndata and not codes.flags.writeable and codes.tolist() == [1, 2, 3, 4]
    assert pyarrow.total_allocated_bytes() == before


def test_an_index_past_the_end_is_an_index_error_so_that_iteration_ends(tmp_path):
    assert list(open_shards(finished(tmp_path, TWO[:1], TWO[1:]), "abc")) == [s for _, s in TWO]


def test_each_image_of_a_sample_keeps_its_own_codes():
    both = sample(grid(1, 1, 1, 1), Text("and"), grid(2, 2, 2, 2))
    assert from_json(to_json(both), [image.content for image in both.images]) == both


def test_codes_of_another_tokenizer_are_refused(tmp_path):
    with pytest.raises(ShardError, match="encoded by tokenizer abc, this one is xyz; use that tokenizer, or encode"):
        open_shards(finished(tmp_path, TWO), "xyz")


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(damage_cut, "is damaged: it has .* bytes, not"), (damage_flip, "is damaged: its checksum differs"),
     (lambda path: path.unlink(), "is missing")],
)
def test_a_damaged_shard_is_refused_with_the_remedy(tmp_path, damage, said):
    file = finished(tmp_path, TWO[:1], TWO[1:]) / "codes-00001.arrow"
    damage(file)
    with pytest.raises(ShardError, match=rf"codes-00001.arrow {said}.*run `unimm encode` again") as caught:
        open_shards(tmp_path, "abc")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [damage_cut, damage_flip])
def test_a_damaged_manifest_is_refused_with_the_remedy(tmp_path, damage):
    damage(finished(tmp_path, TWO) / "manifest.json")
    with pytest.raises(ShardError, match="manifest.json was changed or cut short; run `unimm encode` again"):
        open_shards(tmp_path, "abc")


def test_an_unfinished_encode_and_a_missing_one_are_told_apart(tmp_path):
    write_sealed(tmp_path / "plan.json", {})
    with pytest.raises(ShardError, match="holds an unfinished encode; run `unimm encode` again"):
        open_shards(tmp_path, "abc")
    with pytest.raises(ShardError, match="holds no encoded dataset"):
        open_shards(tmp_path / "nowhere", "abc")


def test_a_sealed_file_gives_back_its_facts_until_one_of_them_is_edited(tmp_path):
    path = tmp_path / "facts.json"
    write_sealed(path, {"codes": 512, "name": "größe"})
    assert read_sealed(path) == {"codes": 512, "name": "größe"}
    path.write_text(path.read_text().replace("512", "513"))
    assert read_sealed(path) is None
