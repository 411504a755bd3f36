import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.checkpoint.folders import CheckpointError
from unimm.checkpoint.read import Pieces, keyed
from unimm.weights import StoredError, write_tensors

PARAMETERS = st.dictionaries(st.sampled_from(["a", "blocks.0.w", "tåble[3]", "b.0:2"]), st.integers(1, 40), min_size=1)


def cut(size: int, places: list[int]) -> list[tuple[int, int]]:
    """[0, size) cut at some places; ranges may be empty."""
    edges = [0, *sorted(place % (size + 1) for place in places), size]
    return list(zip(edges, edges[1:]))


@settings(max_examples=60, deadline=None)
@given(PARAMETERS, st.lists(st.integers(0, 40), max_size=4), st.lists(st.integers(0, 40), max_size=6))
def test_what_n_ranks_wrote_serves_m_ranks_that_cut_elsewhere(tmp_path_factory, sizes, there, here):
    folder = tmp_path_factory.mktemp("pieces")
    whole = {name: {"master": torch.randn(n), "exp_avg": torch.randn(n).to(torch.bfloat16)}
             for name, n in sizes.items()}
    for rank in range(len(there) + 1):
        pieces = {}
        for name, kinds in whole.items():
            start, stop = cut(sizes[name], there)[rank]
            pieces |= keyed(name, start, {kind: t[start:stop] for kind, t in kinds.items()})
        write_tensors(folder / f"training-{rank:05d}.safetensors", pieces)
    read = Pieces(folder)
    assert read.parts.keys() == sizes.keys()
    for name, kinds in whole.items():
        for start, stop in cut(sizes[name], here):
            found = read(name, start, stop)
            assert found.keys() == kinds.keys() == read.parts[name].keys()
            for kind, t in kinds.items():
                assert torch.equal(found[kind], t[start:stop]) and (start == stop or found[kind].dtype == t.dtype)


def test_ranges_that_several_ranks_wrote_are_read_once(tmp_path):
    t = torch.arange(10.0)
    for i, (start, stop) in enumerate([(0, 4), (0, 6), (2, 5), (5, 10)]):
        write_tensors(tmp_path / f"training-{i}.safetensors", keyed("w", start, {"master": t[start:stop]}))
    assert torch.equal(Pieces(tmp_path)("w", 1, 9)["master"], t[1:9])


def test_a_gap_and_a_parameter_that_never_trained_are_named(tmp_path):
    write_tensors(tmp_path / "training-00000.safetensors",
                  keyed("w", 0, {"master": torch.zeros(3)}) | keyed("w", 5, {"master": torch.zeros(3)}))
    read = Pieces(tmp_path)
    assert len(read("w", 5, 8)["master"]) == 3
    with pytest.raises(CheckpointError, match=r"lacks elements 3 to 6 of w, master"):
        read("w", 1, 6)
    with pytest.raises(CheckpointError, match=r"lacks elements 8 to 9 of w"):
        read("w", 5, 9)
    with pytest.raises(CheckpointError, match="no training state for v"):
        read("v", 0, 1)
    assert read.parts.keys() == {"w"}


def test_other_files_are_refused_as_training_state(tmp_path):
    file = tmp_path / "training-00000.safetensors"
    write_tensors(file, {"w": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="no training state: it has a tensor named 'w'"):
        Pieces(tmp_path)
    file.write_bytes(b"no")
    with pytest.raises(StoredError, match="training-00000.safetensors is damaged"):
        Pieces(tmp_path)
