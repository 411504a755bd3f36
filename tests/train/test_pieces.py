"""A run saved by so many ranks at one ZeRO stage continues on others: the same curve, bit for bit on the same."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from train_toys import outcome

START, END = "step-00000010", "step-00000020"
BASES = {
    "zero 0": ("lm", {}), "zero 2": ("lm", {"zero": 2}), "zero 3": ("lm", {"zero": 3}),
    "dropout": ("dropout", {"zero": 1, "micro": 2}), "muon": ("lm", {"zero": 2, "optimizer": "muon"}),
    "average": ("tied", {"zero": 3, "ema": 0.8}), "bf16": ("lm", {"zero": 2, "precision": "bf16"}),
    "offload": ("lm", {"zero": 3, "offload": True, "micro": 2}),
}
# name: (base, ranks it was saved by, ranks it continues on, what else changes)
MOVES = {
    "zero 2 -> 3, 2 -> 1": ("zero 2", 2, 1, {"zero": 3}),
    "zero 3 -> 2, 2 -> 1": ("zero 3", 2, 1, {"zero": 2, "micro": 2}),
    "zero 0 -> 1, 2 -> 1": ("zero 0", 2, 1, {"zero": 1}),
    "muon to zero 0, 2 -> 1": ("muon", 2, 1, {"zero": 0}),
    "average to zero 1, 2 -> 1": ("average", 2, 1, {"zero": 1}),
    "dropout, 2 -> 1": ("dropout", 2, 1, {}),
    "zero 3 -> 0, 1 -> 2": ("zero 3", 1, 2, {"zero": 0}),
    "zero 2 -> 3, 1 -> 2": ("zero 2", 1, 2, {"zero": 3, "micro": 1}),
    "muon to zero 3, 1 -> 2": ("muon", 1, 2, {"zero": 3}),
    "average to zero 2, 1 -> 2": ("average", 1, 2, {"zero": 2}),
    "offload to zero 1, 1 -> 2": ("offload", 1, 2, {"zero": 1}),
}


@pytest.fixture(scope="module")
def folders(toys, tmp_path_factory):
    """(folder, losses) of what 1 and 2 ranks ran, each first whole, then from step 10 of others."""
    top = tmp_path_factory.mktemp("moves")
    found = {1: {}, 2: {}}
    for ranks in (1, 2):
        (top / str(ranks)).mkdir()
    whole = [{"name": name, "module": module, "stage": stage} for name, (module, stage) in BASES.items()]
    found[2] |= toys.runs(top / "2", whole, 2)
    found[1] |= toys.runs(top / "1", whole + continued(top, 1), 1)
    again = [{"name": f"{name} again", "module": module, "stage": stage} for name, (module, stage) in BASES.items()]
    for name in BASES:
        cut_at_start(top / "2" / name, top / "2" / f"{name} again")
    restores = [{"kind": "restored", "name": f"restored at zero {zero}", "start": f"bf16/{END}",
                 "stage": {"zero": zero, "precision": "bf16"}} for zero in (1, 2, 3)]
    found[2] |= toys.runs(top / "2", again + continued(top, 2) + restores, 2)
    return top, found


def cut_at_start(source, target):
    """What a run killed after its first checkpoint leaves."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(END))


def continued(top, ranks: int) -> list[dict]:
    """The moves that end on so many ranks, each in a folder that holds its start."""
    runs = []
    for name, (base, before, after, changes) in MOVES.items():
        if after == ranks:
            module, stage = BASES[base]
            cut_at_start(top / str(before) / base, top / str(after) / name)
            runs.append({"name": name, "module": module, "stage": stage | changes})
    return runs


@pytest.mark.parametrize("base", BASES)
def test_a_run_continued_as_it_was_is_bit_identical(base, folders):
    top, found = folders
    for rank in (0, 1):
        assert outcome(top / "2" / f"{base} again" / END, rank) == outcome(top / "2" / base / END, rank)


@pytest.mark.parametrize("move", MOVES)
def test_a_run_continues_at_another_world_size_and_zero_stage(move, folders):
    top, found = folders
    base, before, after, _ = MOVES[move]
    assert len(found[after][move]) == 20
    assert found[after][move] == pytest.approx(found[before][base], abs=1e-5)
    ends = [load_file(top / str(n) / name / END / "model.safetensors") for n, name in ((after, move), (before, base))]
    ends[0].pop("seen", None), ends[1].pop("seen", None)  # a count of this rank's forwards
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_right_after_a_restore_the_bf16_weights_are_those_of_the_masters(zero, folders):
    """The forward equals one of a plain module into which the saved masters were rounded."""
    from train_toys import Stream, ToyLM

    top, found = folders
    net = ToyLM()
    masters = {}
    for file in sorted((top / "2" / "bf16" / END).glob("training-*")):
        for key, tensor in load_file(file).items():
            if key.endswith(".master"):
                masters.setdefault(key.split("[")[0], []).append((int(key.split("[")[1].split(":")[0]), tensor))
    for name, p in net.named_parameters():
        whole = torch.cat([t for _, t in sorted(masters[name], key=lambda part: part[0])])
        p.data = whole.view(p.shape).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = float(net(Stream("lm").next()).total)
    assert found[2][f"restored at zero {zero}"] == pytest.approx([want], rel=1e-5)
