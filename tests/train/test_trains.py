"""What trains moves, and nothing else does: bit for bit; on two ranks in test_two_ranks.py."""

import pytest
import torch
from torch import nn
from train_toys import Stream, ToyLM, curve, stage
from trains_toys import (
    ADAPTED,
    ALL,
    BLOCK,
    DECAYING,
    LORA,
    NEW,
    NEW_MOVED,
    NEW_ROWS,
    PARTS,
    ROWS,
    Toy,
    moved_by,
)

from unimm.config.check import ConfigError
from unimm.config.stages import AdamW, Muon
from unimm.config.trains import Lora, Trains
from unimm.train import trains
from unimm.train.engine import TrainError
from unimm.train.loop import Work, run_stage
from unimm.train.optimizer import build_optimizer


def apply(train: Trains, module: nn.Module | None = None, new_rows=NEW) -> trains.Trained:
    return trains.apply(module or Toy(), train, new_rows, PARTS, "stages.sft.train")


@pytest.mark.parametrize("optimizer", [DECAYING, Muon(weight_decay=0.5)], ids=["adamw", "muon"])
def test_only_what_is_named_moves(tmp_path, optimizer):
    def moved(name, **fields):
        train = Trains(**fields, rows_learned=True)
        return moved_by(tmp_path / name, engine="plain", train=train, optimizer=optimizer)

    whole = {"embed.weight": ALL, "blocks.0.weight": BLOCK, "blocks.1.weight": BLOCK, "head.weight": ALL}
    still = dict.fromkeys(whole, [])
    assert moved("all") == whole
    assert moved("head", parts=("head",)) == still | {"head.weight": ALL}
    assert moved("frozen", frozen=("blocks.0", "embeddings")) == whole | {"blocks.0.weight": [], "embed.weight": []}
    assert moved("rows", parts=("new_rows",)) == NEW_MOVED
    assert moved("old rows frozen", parts=("all", "new_rows"), frozen=("head",)) == whole | {"head.weight": ROWS}


def test_lora_moves_its_adapters_and_new_rows_alone(tmp_path):
    """SEED-LLaMA's condition; defect 1: adapters everywhere and new rows that never move."""
    want = {"embed.weight": ROWS, **ADAPTED, "head.weight": ROWS}
    assert moved_by(tmp_path, engine="plain", train=LORA) == want
    with pytest.raises(TrainError, match="4 new rows of embed.weight could never learn: LoRA adapts none of its rows; "
                                         "add 'new_rows' to stages.sft.train.parts"):
        apply(Trains(parts=(), lora=Lora()))
    with pytest.raises(ConfigError, match="Trains.parts is .'all',.; it must be what trains beside the adapters"):
        Trains(lora=Lora())


def test_new_rows_learn_as_fast_as_in_a_table_that_trains_whole(tmp_path):
    """The first update of a new row is what it would be if nothing were frozen: Adam's, without decay."""
    free, masked = Toy(), Toy()
    for module, train in ((free, Trains(frozen=("blocks",))), (masked, NEW_ROWS)):
        work = Work(module, Stream("lm"), new_rows=NEW, parts=PARTS)
        one = stage(steps=1, train=train, optimizer=AdamW(lr=0.01, clip=1e9))
        run_stage(work, one, tmp_path / str(train.parts), engine="plain")
    for name, rows in NEW.items():
        ours, theirs = (m.get_parameter(name)[rows.start:rows.stop] for m in (masked, free))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_a_lora_stage_that_was_cut_continues_to_the_same_curve(tmp_path):
    def train(folder, steps):
        work = Work(Toy(), Stream("lm"), new_rows=NEW, parts=PARTS)
        run_stage(work, stage(steps=steps, train=LORA, schedule=stage().schedule.__class__(anneal=0.0, warmup=0.0)),
                  folder, engine="plain")

    train(tmp_path / "whole", 8)
    train(tmp_path / "cut", 4)
    train(tmp_path / "cut", 8)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole") and len(curve(tmp_path / "whole")) == 8


def test_a_fresh_table_trains_whole_where_all_its_rows_are_new():
    module = Toy()
    trained = apply(NEW_ROWS, module, {"embed.weight": range(12), "head.weight": range(12)})
    assert trained.rows == {} and module.embed.weight.requires_grad and not module.blocks[0].weight.requires_grad


def test_what_the_model_froze_itself_stays_frozen():
    module = Toy()
    module.blocks[1].requires_grad_(False)
    apply(Trains(), module)
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["blocks.1.weight"]


def test_tied_tables_train_under_either_name_and_freeze_under_either():
    def learning(train):
        module = Toy(tied=True)
        apply(train, module)
        return {name for name, p in module.named_parameters() if p.requires_grad}

    assert learning(Trains(parts=("head",))) == learning(Trains(parts=("embeddings",))) == {"embed.weight"}
    assert learning(Trains(frozen=("head",), rows_learned=True)) == {"blocks.0.weight", "blocks.1.weight"}
    assert learning(Trains(parts=("all", "new_rows"), frozen=("head",))) == learning(Trains())


def test_parts_have_their_own_rates_also_adapters():
    def rates(train, config):
        module = Toy()
        trained = apply(train, module)
        groups = build_optimizer(module, config, trained).param_groups
        names = {p: name for name, p in module.named_parameters()}
        return {names[p]: (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}

    found = rates(Trains(rates={"all": 0.5, "blocks.1": 3.0}), AdamW(lr=0.01, weight_decay=0.1))
    assert found == {"embed.weight": (0.005, 0.1), "blocks.0.weight": (0.005, 0.1), "head.weight": (0.005, 0.1),
                     "blocks.1.weight": (pytest.approx(0.03), 0.1)}
    assert rates(Trains(rates={"head": 2.0}), Muon(lr=0.02, adamw_lr=0.004))["head.weight"] == (0.008, 0.0)
    found = rates(Trains(parts=("new_rows",), lora=Lora(), rates={"blocks.0": 2.0, "lora_B": 16.0}),
                  AdamW(lr=0.01, weight_decay=0.1))
    assert found["blocks.0.lora_A.default.weight"] == (0.02, 0.1)
    assert found["blocks.0.lora_B.default.weight"] == found["blocks.1.lora_B.default.weight"] == (0.16, 0.1)
    assert found["embed.weight"] == (0.01, 0.0)  # decay would move the old rows


@pytest.mark.parametrize("train, said", [
    (Trains(parts=("haed",)), "stages.sft.train.parts has 'haed', which is no parameter.*did you mean 'head'"),
    (Trains(frozen=("block",)), "stages.sft.train.frozen has 'block'.*did you mean 'blocks'"),
    (Trains(rates={"norms": 2.0}), "stages.sft.train.rates has 'norms'.*it has: all, embeddings, head, new_rows"),
    (Trains(parts=("new_rows",), lora=Lora(targets=("head",))), "stages.sft.train.lora.targets has 'head', which is no "
     "linear layer inside this model's blocks .tables and heads train by train.parts"),
])
def test_a_name_that_matches_nothing_is_refused_with_its_field(train, said):
    with pytest.raises(ConfigError, match=said):
        apply(train)


@pytest.mark.parametrize("train, said", [
    (Trains(frozen=("embeddings",)), "4 new rows of embed.weight could never learn: it is frozen.*add 'new_rows' to "
     "stages.sft.train.parts, or set stages.sft.train.rows_learned"),
    (Trains(parts=("embeddings", "blocks")), "4 new rows of head.weight could never learn"),
    (Trains(frozen=("all",), rows_learned=True), "nothing trains.*change stages.sft.train.parts"),
    (Trains(parts=("new_rows",), rates={"blocks": 2.0}), "rates has a factor for 'blocks', but nothing of it trains"),
    (Trains(rates={"new_rows": 2.0}), "'new_rows', but (embed|head).weight trains with its old rows"),
])
def test_a_stage_that_can_not_learn_what_it_should_is_refused(train, said):
    with pytest.raises(TrainError, match=said):
        apply(train)


def test_a_refused_stage_writes_nothing(tmp_path):
    work = Work(ToyLM(), Stream("lm"), new_rows=NEW, parts=PARTS)
    with pytest.raises(TrainError, match="never learn"):
        run_stage(work, stage(train=Trains(frozen=("embeddings",))), tmp_path / "run", engine="plain")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fields, said", [
    ({"rates": {"head": 0.0}}, "Trains.rates is .*to freeze 'head' put it into frozen"),
    ({"lora": {"rank": 0}}, "Lora.rank is 0; it must be greater than 0"),
    ({"lora": {"dropout": 1.0}}, "Lora.dropout is 1.0"),
    ({"lora": {"targets": ()}}, "Lora.targets"),
])
def test_impossible_values_are_refused_on_construction(fields, said):
    with pytest.raises(ConfigError, match=said):
        lora = {"lora": Lora(**fields.pop("lora"))} if "lora" in fields else {}
        Trains(parts=("new_rows",), **fields, **lora)
