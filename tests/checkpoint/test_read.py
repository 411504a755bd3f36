import json

import numpy as np
import pytest
import torch
from checkpoint.saves import Odd, pieces_of, same, save, together
from safetensors.torch import load_file
from torch import nn

from unimm.checkpoint.folders import CheckpointError, faults, verify
from unimm.checkpoint.read import KEY, Pieces, load_weights, newest, read_recipe, read_state, read_weights, take_up
from unimm.checkpoint.write import Saver
from unimm.weights import DTYPES, StoredError


def flip(content: bytes, place: int) -> bytes:
    broken = bytearray(content)
    broken[place // 8] ^= 1 << place % 8
    return bytes(broken)


@pytest.mark.parametrize("split", [10**9, 150])
def test_weights_come_back_bit_for_bit_whatever_their_type_ties_buffers_and_splits_included(tmp_path, split):
    other = Odd(4)
    path = save(tmp_path, split=split)
    load_weights(path, other)
    assert same(other, Odd(3)) and other.head.weight is other.embed.weight
    assert read_state(path)["step"] == 3 and read_recipe(path) == {"name": "toy"}
    names = [name for file in path.glob("model*.safetensors") for name in load_file(file)]
    assert sorted(names) == sorted(Odd().state_dict().keys() - {"head.weight"})


def test_split_weights_have_the_index_that_transformers_reads(tmp_path):
    path = save(tmp_path, split=150)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))] and len(files) > 1
    for name, file in index["weight_map"].items():
        assert name in load_file(path / file)
    assert index["metadata"]["total_size"] == sum(t.nbytes for _, t in read_weights(path))
    for file in files:
        tensors = load_file(path / file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 150


def test_every_type_that_safetensors_knows_is_written_as_it_writes_it(tmp_path):
    from safetensors.torch import save_file

    from unimm.weights import write_tensors

    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, t in theirs.items():
        assert ours[name].dtype == t.dtype and ours[name].shape == t.shape
        assert torch.equal(ours[name].view(torch.uint8), t.view(torch.uint8))
    with pytest.raises(StoredError, match="can't save odd: safetensors has no name for torch.complex128"):
        write_tensors(tmp_path / "odd", {"odd": torch.zeros(1, dtype=torch.complex128)})


@pytest.mark.parametrize("world", [1, 3])
def test_averaged_weights_are_put_together_from_the_pieces_of_all_ranks(tmp_path, world):
    def act(peers):
        module = Odd(3)
        saver = Saver(tmp_path, **peers)
        saver.save(1, module.state_dict(), pieces_of(module, peers["rank"], peers["world"]), {}, {})
        return saver.wait()

    path = together(world, act)[0]
    assert len(list(path.glob("training-*"))) == world
    for ema, want in ((True, lambda p: (p.float() * 2 + 1).to(p.dtype)), (False, lambda p: p), (None, lambda p: p)):
        other = Odd(4)
        load_weights(path, other, ema=ema)
        for name, p in Odd(3).named_parameters():
            assert torch.equal(other.get_parameter(name), want(p)), (name, ema)
        assert torch.equal(other.uint16, Odd(3).uint16)


def test_averages_that_are_not_there_are_refused(tmp_path):
    saver, module = Saver(tmp_path), Odd()
    saver.save(1, module.state_dict(), pieces_of(module, keys=("master",)), {}, {})
    path = saver.wait()
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_weights(path, module, ema=True)
    saver.save(2, module.state_dict(), {}, {}, {})
    path = saver.wait()
    with pytest.raises(CheckpointError, match="no training state"):
        load_weights(path, module, ema=False)


def test_another_model_s_weights_are_refused_by_the_first_name_that_differs_and_nothing_is_loaded(tmp_path):
    path = save(tmp_path)
    other = Odd(4)
    other.uint8 = torch.zeros(7, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"uint8 it has shape \(5,\), this model shape \(7,\)"):
        load_weights(path, other)
    assert torch.equal(other.scale, Odd(4).scale)
    with pytest.raises(CheckpointError, match="another model"):
        load_weights(path, nn.Linear(2, 2))


def test_weights_saved_under_both_names_of_a_tied_table_are_taken(tmp_path):
    module = Odd()
    state = {name: t.clone() for name, t in module.state_dict().items()}
    saver, other = Saver(tmp_path), Odd(4)
    saver.save(1, state, {}, {}, {})
    load_weights(saver.wait(), other)
    assert same(other, module)


def test_200_flipped_bits_and_truncations_are_found_wherever_they_are_and_the_previous_checkpoint_serves(tmp_path):
    old, new = save(tmp_path, 1, split=150), save(tmp_path, 2, split=150)
    files = sorted(new.iterdir())
    random = np.random.default_rng(0)
    detected = loaded = 0
    for i in range(200):
        file = files[i % len(files)]
        whole = file.read_bytes()
        if i % 3:
            file.write_bytes(flip(whole, random.integers(8 * len(whole))))
        else:
            file.write_bytes(whole[:random.integers(len(whole))])
        named: list = []
        found = newest(tmp_path, named)
        detected += len(named) == 1 and file.name in named[0][1]
        loaded += found != old
        file.write_bytes(whole)
    assert (detected, loaded) == (200, 0)
    assert newest(tmp_path) == new


def test_a_missing_file_is_named_and_so_is_every_faulty_one(tmp_path):
    path = save(tmp_path)
    (path / "training-00000.safetensors").unlink()
    (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="state.json is damaged.*training-00000.safetensors is missing"):
        verify(path)
    assert len(faults(path)) == 2
    for manifest in ("", "[]", "{}", '{"files": [], "sha256": ""}', '{"files": {"a": 1}, "sha256": "b"}'):
        (path / "manifest.json").write_text(manifest)
        with pytest.raises(CheckpointError, match="manifest.json is damaged"):
            verify(path)


def test_a_run_continues_from_the_newest_whole_checkpoint_and_newer_damaged_ones_are_kept_aside(tmp_path):
    assert take_up(tmp_path / "none", print) is None and newest(tmp_path) is None
    paths = [save(tmp_path, step) for step in (1, 2, 10)]
    (tmp_path / "step-00000099.part").mkdir()
    assert take_up(tmp_path, print) == newest(tmp_path) == paths[2]
    assert not (tmp_path / "step-00000099.part").exists()
    (paths[2] / "state.json").unlink()
    told = []
    assert take_up(tmp_path, told.append) == paths[1]
    assert len(told) == 1 and "state.json is missing; kept as step-00000010.damaged" in told[0]
    assert (tmp_path / "step-00000010.damaged" / "recipe.json").is_file() and not paths[2].exists()


def test_a_run_whose_checkpoints_are_all_damaged_is_never_begun_anew_by_itself(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of the 2 checkpoints in .* is whole"):
            take_up(tmp_path, print)


def test_a_reader_changes_nothing_and_sees_a_checkpoint_that_only_misses_its_name(tmp_path):
    part = tmp_path / "step-00000003.part"
    save(tmp_path).rename(part)
    assert newest(tmp_path) == part and part.is_dir()
    assert take_up(tmp_path, print) == tmp_path / "step-00000003" and not part.exists()
    assert same_pieces(Pieces(tmp_path / "step-00000003"))


def same_pieces(read) -> bool:
    for key, t in pieces_of(Odd(3)).items():
        name, start, stop, kind = KEY.fullmatch(key).groups()
        if not read(name, int(start), int(stop))[kind].equal(t):
            return False
    return True
