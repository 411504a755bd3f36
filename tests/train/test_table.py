"""The table before step 1: what it counts, and how it reads."""

import pytest
import torch
from train_toys import Stream, stage
from trains_toys import LORA, NEW, NEW_ROWS, PARTS, Toy

from unimm.config.stages import AdamW, Muon
from unimm.config.trains import Trains
from unimm.train import table, trains
from unimm.train.loop import Work, run_stage


def rows(train: Trains, world: int = 1, tied: bool = False, **changes) -> dict[str, table.Row]:
    module = Toy(tied)
    trained = trains.apply(module, train, NEW, PARTS)
    return {row.part: row for row in table.rows(module, stage(train=train, **changes), trained, world)}


def test_each_part_says_how_it_trains_and_at_which_rate():
    found = rows(Trains(frozen=("blocks",), rates={"head": 0.1}))
    assert {part: (r.parameters, r.trained, r.how, r.lr) for part, r in found.items()} == {
        "embed": (96, 96, "full, 4 rows new", "0.01"), "blocks": (128, 0, "frozen", ""),
        "head": (96, 96, "full, 4 rows new", "0.001")}
    found = rows(LORA)
    assert {part: (r.parameters, r.trained, r.how) for part, r in found.items()} == {
        "embed": (96, 32, "4 new rows of 12"), "blocks": (192, 64, "LoRA rank 2 on 2 layers"),
        "head": (96, 32, "4 new rows of 12")}
    assert rows(Trains(parts=("all", "new_rows"), frozen=("blocks.1", "head")))["blocks"].how == "1 of 2 tensors"
    assert rows(Trains(), tied=True)["embed"].how == "full, 4 rows new, tied to head"
    assert rows(Trains(), optimizer=Muon(lr=0.02, adamw_lr=0.004))["blocks"].lr == "0.02"


@pytest.mark.parametrize("zero, precision, weights, gradients, optimizer", [
    (0, "fp32", 4 * 320, 4 * 192, 8 * 192),
    (0, "bf16", 4 * 320, 4 * 192, 8 * 192),
    (1, "bf16", 2 * 320, 2 * 192 / 4, 12 * 192 / 4),
    (2, "bf16", 2 * 320, 2 * 192 / 4, 12 * 192 / 4),
    (3, "bf16", 2 * (320 + 320 / 4), 2 * 192 / 4, 12 * 192 / 4),
    (3, "fp32", 4 * (320 + 320 / 4), 4 * 192 / 4, 12 * 192 / 4),
])
def test_a_rank_s_memory_follows_precision_zero_and_what_trains(zero, precision, weights, gradients, optimizer):
    """Half the toy's rows train, but whole tables have gradients and moments; at stage 3 its tensors, all of them
    small, stay whole beside the shares."""
    found = rows(NEW_ROWS, 4, zero=zero, precision=precision).values()
    assert [sum(part) for part in zip(*(r.held for r in found))] == [weights, gradients, optimizer]


def test_gradients_added_up_over_several_forwards_are_fp32_and_shared_out():
    found = rows(NEW_ROWS, 2, zero=1, precision="bf16", micro=2).values()
    assert sum(r.held.gradients for r in found) == 4 * 192 / 2


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_in_one_process_the_bytes_are_those_of_the_tensors(optimizer):
    module = Toy()
    plan = stage(optimizer=optimizer)
    found = table.rows(module, plan, trains.apply(module, Trains(), NEW, PARTS), 1)
    built = table.build_optimizer(module, optimizer)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    size = sum(p.grad.nbytes for p in module.parameters())
    built.step()
    state = sum(t.nbytes for values in built.state.values() for t in values.values() if t.ndim)
    assert sum(r.held.gradients for r in found) == sum(r.held.weights for r in found) == size
    assert sum(r.held.optimizer for r in found) == state


def test_the_table_is_said_before_step_1_in_lines_that_fit(tmp_path, capsys):
    work = Work(Toy(), Stream("lm"), new_rows=NEW, parts=PARTS)
    run_stage(work, stage(steps=1, train=LORA), tmp_path, engine="plain")
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:6]] == ["part", "embed", "blocks", "head", "total", "one"]
    assert said[4].split()[:3] == ["total", "384", "128"] and "33.3 % of all" in said[4]
    assert max(map(len, said[:6])) <= 120
