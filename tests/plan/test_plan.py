"""Plans against facts that are known otherwise: published sizes, files that are written, arithmetic by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import TINY

from unimm.config.check import ConfigError
from unimm.config.model import FreshBackbone, PretrainedBackbone
from unimm.config.stages import AdamW
from unimm.config.trains import Lora, Trains
from unimm.hardware import gpu_named
from unimm.plan.plan import Cluster, plan
from unimm.plan.table import table, to_json
from unimm.sample import Codes, Image, Sample
from unimm.stream.shards import write_shard

SFT = replace(TINY.stages["sft"], steps=1000, step_tokens=64 * 4096, seq_len=4096, micro=1, precision="bf16", zero=2,
              optimizer=AdamW())
# Qwen3-8B's shape (its model card: 8.2 billion parameters, 6.95 billion of them not in tables).
EIGHT = replace(TINY, backbone=FreshBackbone(width=4096, layers=36, heads=32, kv_heads=8, mlp=12288),
                stages={"sft": SFT})


def on(gpus: int, gpu: str = "h200") -> Cluster:
    return Cluster(gpus=gpus, per_node=8, gpu=gpu_named(gpu), mfu=0.4)


def test_a_published_shape_has_its_published_size_and_time_is_six_n_d():
    found = plan(EIGHT, on(64)).stages[0]
    backbone = next(part for part in found.parts if part.name == "backbone")
    assert backbone.parameters == pytest.approx(6.95e9, rel=0.002)
    days = 6 * backbone.parameters * 1000 * 64 * 4096 / (64 * 0.4 * 989.4e12) / 86400
    assert found.seconds / 86400 == pytest.approx(days, rel=0.02)
    assert found.total == 1000 * 64 * 4096
    # bf16 weights, fp32 masters and two moments: 2 + 4 + 8 bytes a parameter.
    assert found.checkpoint == pytest.approx(14 * sum(part.parameters for part in found.parts), rel=1e-6)


def test_what_does_not_fit_is_told_with_the_change_that_fits():
    asked = plan(EIGHT, on(8, "a100-40")).stages[0]
    assert not asked.fits and "set stages.sft.recompute to True, for" in asked.problems[0]
    changed = replace(EIGHT, stages={"sft": replace(SFT, recompute=True)})
    assert plan(changed, on(8, "a100-40")).stages[0].fits
    alone = plan(EIGHT, on(1, "4090")).stages[0]
    assert "offload" in alone.problems[0] or "GPUs would do" in alone.problems[0]


def test_thousands_of_gpus_are_planned_on_paper_and_uneven_shares_are_told():
    found = plan(EIGHT, on(4096)).stages[0]
    assert found.equation.startswith("16,777,216 tokens a step = 4,096 ranks x 1 accumulated x 1 rows x 4,096 tokens")
    assert any("can't share" in problem and "16,777,216" in problem for problem in found.problems)


def test_frozen_backbones_keep_their_weights_and_lose_the_rest():
    frozen = replace(EIGHT, stages={"sft": replace(SFT, train=Trains(frozen=("backbone",)))})
    lora = replace(EIGHT, stages={"sft": replace(SFT, train=Trains(parts=("new_rows",), lora=Lora(rank=8)))})
    whole, some, few = (plan(recipe, on(8)).stages[0] for recipe in (EIGHT, frozen, lora))
    assert some.memory["weights"] == whole.memory["weights"]
    assert some.memory["optimizer"] < whole.memory["optimizer"] / 100
    assert some.rate > 1.2 * whole.rate
    adapters = next(part for part in few.parts if part.name == "adapters")
    # Seven linear layers of a block: (in + out) x rank each.
    each = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288)
    assert adapters.parameters == adapters.trained == 36 * 8 * each


def test_a_published_backbone_is_counted_from_its_config_alone(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=128, tie_word_embeddings=True, architectures=["LlamaForCausalLM"]
                ).save_pretrained(tmp_path)
    recipe = replace(TINY, backbone=PretrainedBackbone(path=str(tmp_path)))
    parts = {part.name: part.parameters for part in plan(recipe, on(1)).stages[-1].parts}
    assert parts["backbone"] == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert "head" not in parts and "new rows of head" not in parts
    with pytest.raises(ConfigError, match="downloads nothing"):
        plan(replace(TINY, backbone=PretrainedBackbone(path="some/model")), on(1))


def test_bytes_of_codes_are_those_that_a_shard_holds(tmp_path):
    rows = [(str(i), Sample((Image(Codes.of_grid(np.zeros((4, 4), np.int32))),))) for i in range(500)]
    facts = write_shard(tmp_path / "codes.arrow", rows, TINY.codebooks[0].size)
    each = plan(TINY, on(1)).data[0].bytes_per_image
    assert 500 * each == 2 * facts["codes"] + 500 * 5 * 4  # uint16, and five int32 a level
    assert 500 * each < facts["bytes"]


def test_the_table_and_the_json_say_the_same(capsys):
    found = plan(TINY, on(16))
    text = "\n".join(table(found))
    facts = json.loads(to_json(found))
    assert facts["gpus"] == 16 and "16 x h200 on 2 nodes" in text
    for stage, made in zip(facts["stages"], found.stages):
        assert stage["equation"] in text and f"{made.peak / 2**30:,.2f} GiB" in text
        assert stage["peak"] == sum(stage["memory"].values())
    assert text.count("can't share") == sum(len(stage.problems) for stage in found.stages) > 0


def test_impossible_clusters_are_refused():
    with pytest.raises(ConfigError, match="12, which nodes of 8"):
        on(12)
    with pytest.raises(ConfigError, match="mfu is 1.4"):
        Cluster(gpus=8, per_node=8, gpu=gpu_named("h200"), mfu=1.4)
