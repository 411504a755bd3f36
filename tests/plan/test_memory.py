"""The memory of a plan against what ranks of real processes hold, and against what autograd saves."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # for held, which is a program for subprocesses too

from held import CASES, RECIPE, STAGE, cases  # noqa: E402

from unimm.config.stages import NextToken  # noqa: E402
from unimm.images.tokenizer import build_tokenizer  # noqa: E402
from unimm.model.attention import Documents  # noqa: E402
from unimm.model.backbone import recompute_layers  # noqa: E402
from unimm.plan.memory import Counts, Saved, buffers, measure, memory, remedy  # noqa: E402  # noqa: E402
from unimm.system import layout_of, new_model  # noqa: E402
from unimm.text import BytesTokenizer  # noqa: E402
from unimm.train.shares import shares  # noqa: E402

LAYOUT = layout_of(RECIPE, BytesTokenizer())
LARGEST = 4 * LAYOUT.vocab.rows * RECIPE.backbone.width


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> dict[str, list[dict]]:
    """Case and world size -> what each rank held, in bytes by part; both worlds at once, one on each core."""
    folder = tmp_path_factory.mktemp("held")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = [str(Path(__file__).with_name("held.py")), str(folder)]
    started = [subprocess.Popen([sys.executable, *launcher, *program], env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True) for launcher in ([], two)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-6000:]
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        for case, bytes_by_part in json.loads(path.read_text()).items():
            found.setdefault(f"{case}, world {path.stem[-1]}", []).append(bytes_by_part)
    return found


def counted(stage: NextToken) -> Counts:
    return measure(RECIPE, LAYOUT, stage, "x").counts


@pytest.mark.parametrize("case, world", [(case, world) for world in (1, 2) for case in cases(world)])
def test_each_rank_holds_what_the_plan_says_within_ten_percent(held, case, world):
    stage = replace(STAGE, **CASES[case])
    counts = counted(stage)
    cut = shares(stage, world)
    planned, host = memory(counts, stage, cut, gpu=False)
    everyone = held[f"{case}, world {world}"]
    assert len(everyone) == world
    for rank in everyone:
        assert rank["weights"] == pytest.approx(planned["weights"], rel=0.1)
        kept, passing = buffers(counts, stage, cut)
        if stage.offload:
            # Device and host are one memory here: what lies in either, by the sum.
            beside = sum(rank[part] for part in ("gradients", "optimizer", "average", "buffers"))
            assert beside == pytest.approx(host + kept, rel=0.1, abs=2 * LARGEST)  # and staging of one tensor
            continue
        for part in ("optimizer", "average"):
            assert rank[part] == pytest.approx(planned[part], rel=0.1), part
        # The gradient of the one tensor that lies in two ranks' shares may be whole on both.
        assert rank["gradients"] == pytest.approx(planned["gradients"], rel=0.1, abs=LARGEST)
        together = ("weights", "gradients", "optimizer", "average")
        assert sum(rank[p] for p in together) == pytest.approx(sum(planned[p] for p in together), rel=0.1)
        # Those that pass may be gone already; masks, positions and counters are not counted.
        assert 0.9 * kept <= rank["buffers"] <= 1.1 * (kept + passing) + 50_000
        if stage.zero == 3:  # where nothing that lies on two sides of a line may be counted on both
            assert sum(rank.values()) == pytest.approx(sum(planned[p] for p in together) + kept, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"precision": "bf16", "zero": 2}])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_autograd_saves_of_a_real_forward_pass(changes, recompute):
    """Within 10 %: the loop over documents of a CPU repeats keys for groups of heads, which fused kernels don't."""
    stage = replace(STAGE, seq_len=640, step_tokens=2 * 640, **changes)
    counts = counted(stage)
    model = new_model(RECIPE, LAYOUT, build_tokenizer(RECIPE.image_tokenizer)).train()
    if stage.precision == "bf16" and stage.zero:
        model.bfloat16()
    if recompute:
        recompute_layers(model.backbone, reentrant=False)
    position = torch.arange(640).expand(2, -1)
    with (saved := Saved(model)), torch.autocast("cpu", torch.bfloat16, enabled=stage.precision == "bf16"):
        embedded, _ = model.image_input(model.backbone.get_input_embeddings(), torch.zeros_like(position))
        model.backbone.model(inputs_embeds=embedded, position_ids=position,
                             documents=Documents(torch.ones_like(position)), use_cache=False)
    layers = RECIPE.backbone.layers
    row = counts.row
    if recompute:  # the plan adds the one layer that is whole again in backward
        row = (counts.row_recomputed - counts.row / layers) / (1 - 1 / layers)
    assert saved.bytes == pytest.approx((0 if recompute else counts.once) + 2 * row, rel=0.1)


def test_the_remedy_fits_and_is_the_mildest():
    stage = replace(STAGE, step_tokens=8 * 16 * STAGE.seq_len, precision="bf16", compile=True)
    counts = counted(stage)

    def total(stage: NextToken) -> int:
        return sum(memory(counts, stage, shares(stage, 8), gpu=False)[0].values())

    def fitting(limit: int) -> NextToken | None:
        return remedy(counts, stage, 8, limit, gpu=False)

    assert fitting(total(stage)) == stage
    assert fitting(total(stage) - 1) == replace(stage, micro=8)
    assert shares(replace(stage, micro=8), 8).accumulated == 2
    found = fitting(total(replace(stage, micro=1)) - 1)
    assert found.recompute and found.zero == 0
    found = fitting(total(replace(stage, micro=1, recompute=True)) - 1)
    assert found.zero > 0 and not found.offload
    assert fitting(1000) is None
    least = min(total(replace(stage, micro=1, recompute=True, zero=zero, offload=True)) for zero in (1, 2))
    assert fitting(least - 1) is None  # for compiled layers can't be at zero 3
