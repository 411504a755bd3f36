import random

import numpy as np
import pytest
import torch
from torch import nn

from unimm import checkpoint
from unimm.checkpoint import CheckpointError


class Tied(nn.Module):
    """Two names for one table, a buffer, and a parameter in another layout."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.arange(4.0))
        self.turned = nn.Parameter(torch.randn(2, 6).T)


def save(folder, step=3, module=None, keep=2):
    module = module or Tied()
    shard = {"moments": torch.arange(6.0), "random": checkpoint.random_state()}
    return checkpoint.save(folder, step, module, shard, {"stream": {"i": step}}, {"name": "toy"}, keep)


def test_weights_come_back_bit_for_bit_ties_and_buffers_included(tmp_path):
    module, other = Tied(), Tied()
    checkpoint.load_weights(save(tmp_path, module=module), other)
    want, got = module.state_dict(), other.state_dict()
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    assert other.head.weight is other.embed.weight


def test_every_random_generator_continues_where_it_was(tmp_path):
    path = save(tmp_path)
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    want = draws()
    checkpoint.set_random_state(checkpoint.load_shard(path, 0)["random"])
    assert draws() == want


@pytest.mark.parametrize("name", ["model.safetensors", "rank-00000.pt", "state.json", "recipe.json", "manifest.json"])
def test_a_flipped_bit_a_missing_end_and_a_missing_file_are_found_in_every_file(tmp_path, name):
    path = save(tmp_path)
    file = path / name
    whole = file.read_bytes()
    checkpoint.verify(path)
    for place in np.random.default_rng(0).integers(0, len(whole), 20):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(place) % 7
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.verify(path)
    for size in (0, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=name):
            checkpoint.verify(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(path)


def test_the_newest_whole_checkpoint_is_found_and_newer_broken_ones_are_named(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    paths = [save(tmp_path, step, keep=9) for step in (1, 2, 10)]
    (tmp_path / "step-00000099.part").mkdir()
    assert checkpoint.newest(tmp_path) == paths[2]
    (paths[2] / "rank-00000.pt").unlink()
    named = []
    assert checkpoint.newest(tmp_path, lambda path, why: named.append(path)) == paths[1]
    assert named == [paths[2]]
    for path in paths[:2]:
        (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        checkpoint.newest(tmp_path)


def test_saving_again_over_a_step_keeps_what_was_there_aside(tmp_path):
    first = save(tmp_path)
    before = (first / "model.safetensors").read_bytes()
    save(tmp_path)
    assert (tmp_path / "step-00000003.damaged" / "model.safetensors").read_bytes() == before
    checkpoint.verify(first)


def test_another_model_s_weights_are_refused_by_the_first_name_that_differs(tmp_path):
    path = save(tmp_path)
    other = Tied()
    other.count = torch.arange(7.0)
    with pytest.raises(CheckpointError, match=r"count it has shape \(4,\), this model shape \(7,\)"):
        checkpoint.load_weights(path, other)
    other = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.load_weights(path, other)


def test_a_shard_is_read_by_the_loader_that_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    path = save(tmp_path)
    torch.save({"engine": Evil()}, path / "rank-00000.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.load_shard(path, 0)


def test_a_failed_write_leaves_the_older_checkpoints_and_names_the_path(tmp_path):
    old = save(tmp_path, 1)
    (tmp_path / "step-00000002.part").write_text("a file in the way of the folder")
    with pytest.raises(CheckpointError, match="can't write the checkpoint .*step-00000002"):
        save(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == old
