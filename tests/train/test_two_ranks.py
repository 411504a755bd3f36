"""What a stage may ask for, on two real ranks that are started once: against a plain loop, the plain engine, itself."""

import pytest
import torch
from engine_runs import run
from plain_loop import divisions, plain_loop
from safetensors.torch import load_file
from trains_toys import ADAPTED, ALL, FROZEN_BLOCKS, NEW_MOVED, ROWS, TWO_RANKS

MUON = {"optimizer": "muon", "micro": 2}
RATES = {"embed": 0.1, "blocks.1": 3.0}
RUNS = {
    **{f"offload at zero {z}": ("lm", {"zero": z, "offload": True, "micro": 2}) for z in (1, 2, 3)},
    **{f"muon at zero {z}": ("lm", {"zero": z} | MUON) for z in range(4)},
    "muon offloaded at zero 2": ("lm", {"zero": 2, "offload": True} | MUON),
    **{f"tied at zero {z}": ("tied", {"zero": z, "ema": 0.8, "micro": 4}) for z in range(4)},
    **{f"ragged at zero {z}": ("ragged", {"zero": z}) for z in (2, 3)},
    **{f"unified at zero {z}": ("unified", {"zero": z, "micro": 2, "recomputed": z > 1}) for z in (1, 2, 3)},
    **{f"bf16 at zero {z}": ("lm", {"zero": z, "precision": "bf16"}) for z in range(4)},
    **{f"bf16 accumulated at zero {z}": ("lm", {"zero": z, "precision": "bf16", "micro": 2}) for z in range(4)},
}


@pytest.fixture(scope="module")
def found(toys, tmp_path_factory):
    """Losses by name of two ranks, and the folder of the runs."""
    folder = tmp_path_factory.mktemp("two")
    runs = [{"name": name, "module": module, "stage": {"steps": 12} | stage} for name, (module, stage) in RUNS.items()]
    runs += [{"name": f"rates at zero {z}", "module": "lm", "stage": {"steps": 12, "zero": z}, "rates": RATES}
             for z in (0, 2, 3)]
    runs += [{"kind": "previewed", "name": f"previewed at zero {z}", "module": "tied", "stage":
              {"steps": 6, "zero": z, "ema": 0.5, "preview_every": 3}} for z in range(4)]
    runs += [{"kind": "skipping", "name": f"skipping at zero {z}, {more}", "stage": {"zero": z, "micro": 2} | more}
             for z in range(4) for more in ({}, {"offload": True}, {"precision": "bf16"})[:3 if z else 1]]
    runs += [{"kind": "returning", "name": f"returning at zero {z}, {more}", "stage": {"zero": z, "ema": 0.9} | more}
             for z in range(4) for more in ({}, {"optimizer": "muon"})]
    runs += divisions(2)
    runs += [{"kind": "moved", "name": name} for name in TWO_RANKS]
    runs += [{"kind": kind, "name": kind} for kind in ("skip", "roll")]
    return toys.runs(folder, runs, 2), folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same module's losses by the plain engine in this process, all at once; and the folder."""
    folder = tmp_path_factory.mktemp("plain")
    kept = {}

    def losses(module: str, rates: dict | None = None, **stage):
        name = f"{module} {sorted(stage.items())} {rates}"
        if name not in kept:
            kept[name] = run(folder, name, module, {"steps": 12} | stage, engine="plain", rates=rates), folder / name
        return kept[name]

    return losses


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("bf16")])
def test_two_ranks_give_the_plain_curve(name, found, plain):
    module, stage = RUNS[name]
    want, _ = plain(module, **{k: v for k, v in stage.items() if k in ("optimizer", "ema")})
    assert found[0][name] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("bf16")])
def test_bfloat16_stays_near_the_curve(name, found, plain):
    assert found[0][name] == pytest.approx(plain("lm")[0], abs=2e-2)


def test_rates_slow_down_and_speed_up_the_parameters_they_name(found, plain):
    want, folder = plain("lm", RATES)
    weights = load_file(folder / "step-00000012" / "model.safetensors")
    for zero in (0, 2, 3):
        there = found[1] / f"rates at zero {zero}" / "step-00000012" / "model.safetensors"
        torch.testing.assert_close(load_file(there), weights, atol=1e-5, rtol=0)
    assert max(abs(a - b) for a, b in zip(want, plain("lm")[0])) > 0.01


@pytest.mark.parametrize("zero", range(4))
def test_what_a_stage_leaves_is_the_average_of_its_weights(zero, found, plain):
    there = found[1] / f"tied at zero {zero}"
    left = load_file(there / "step-00000012" / "model.safetensors")
    raw = whole(there / "step-00000012", "master")
    averages = whole(there / "step-00000012", "ema")
    assert raw.keys() == averages.keys() == {"embed.weight", "blocks.1.weight"}
    for name, average in averages.items():
        assert torch.equal(left[name].flatten(), average)
        assert not torch.allclose(average, raw[name], atol=1e-4)
    alone = whole(plain("tied", ema=0.8)[1] / "step-00000012", "ema")
    torch.testing.assert_close(averages, alone, atol=1e-5, rtol=0)
    assert left.keys() == {"embed.weight", "blocks.0.weight", "blocks.1.weight", "seen"} and left["seen"] == 12


def whole(path, kind: str) -> dict[str, torch.Tensor]:
    """Every parameter's `kind` put together from all ranks' pieces."""
    pieces: dict[str, list] = {}
    for file in path.glob("training-*"):
        for key, tensor in load_file(file).items():
            name, rest = key.split("[")
            if rest.endswith(f"].{kind}"):
                pieces.setdefault(name, []).append((int(rest.split(":")[0]), tensor))
    return {name: torch.cat([t for _, t in sorted(parts, key=lambda p: p[0])]) for name, parts in pieces.items()}


@pytest.mark.parametrize("zero", range(4))
def test_a_preview_sees_the_weights_that_the_stage_leaves(zero, found):
    early, late, left = found[0][f"previewed at zero {zero}"]
    assert late == pytest.approx(left, abs=1e-6) and abs(early - late) > 1e-3


def test_a_step_that_is_not_finite_changes_nothing_and_the_next_follows(found):
    skipping = {name: moved for name, moved in found[0].items() if name.startswith("skipping")}
    assert len(skipping) == 10 and all(moved == [0.0] for moved in skipping.values()), skipping


def test_an_engine_that_goes_back_to_an_earlier_state_takes_the_same_step_again(found):
    returning = {name: moved for name, moved in found[0].items() if name.startswith("returning")}
    assert len(returning) == 8 and all(moved == [0.0] for moved in returning.values()), returning


def test_zero_and_accumulation_give_the_curve_of_a_plain_loop(found):
    want = plain_loop()
    for each in divisions(2):
        assert found[0][each["name"]] == pytest.approx(want, abs=1e-5), each["name"]


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_move_the_same_at_every_zero_stage(name, found):
    rows = found[0][name]
    match name.split(", ")[0]:
        case "new rows":
            assert rows == NEW_MOVED
        case "tied":
            assert rows == {"embed.weight": ROWS, **FROZEN_BLOCKS}
        case "lora":
            assert rows == {"embed.weight": ROWS, **ADAPTED, "head.weight": ROWS}
        case _:
            assert name.startswith("blocks frozen") and rows == NEW_MOVED | {"head.weight": ALL}


def test_what_goes_wrong_on_one_rank_of_two_is_skipped_on_both(found):
    assert found[0]["skip"] == 4  # ZeRO stages
    names = sorted(path.name for path in (found[1] / "skip" / "zero 2" / "bad-batches").glob("*.json"))
    # At step 6 rank 1's gradient alone was NaN, which no rank can tell; at step 9 it was rank 1's loss.
    assert names == [f"step-0000000{step}-rank-0000{rank}.json" for step, rank in ((6, 0), (6, 1), (9, 1))]


def test_two_ranks_roll_back_together_to_what_they_would_be_without_the_bad_batches(found):
    assert found[0]["roll"] == 3
