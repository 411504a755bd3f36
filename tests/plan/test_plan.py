"""Plans against facts that are known otherwise: published sizes, files that are written, arithmetic by hand."""

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import TINY

from unimm.config.check import ConfigError
from unimm.config.images import Emu3, LlamaGen
from unimm.config.model import FreshBackbone, PretrainedBackbone
from unimm.config.stages import AdamW
from unimm.config.trains import Lora, Trains
from unimm.hardware import gpu_named
from unimm.images.tokenizer import build_tokenizer
from unimm.plan import plan as plans
from unimm.plan.plan import Cluster, plan, text_of_plan
from unimm.sample import Codes, Image, Sample
from unimm.stream.shards import write_shard

SFT = replace(TINY.stages["sft"], steps=1000, step_tokens=64 * 4096, seq_len=4096, micro=1, precision="bf16", zero=2,
              optimizer=AdamW())
# Qwen3-8B's shape (its model card: 8.2 billion parameters, 6.95 billion of them not in tables).
EIGHT = replace(TINY, backbone=FreshBackbone(width=4096, layers=36, heads=32, kv_heads=8, mlp=12288),
                stages={"sft": SFT})


@pytest.fixture(autouse=True, scope="module")
def each_model_is_measured_once():
    found, measure = {}, plans.measure

    def once(*given):
        key = repr((given[0], *given[2:]))  # but for the layout, which follows from the recipe
        if key not in found:
            found[key] = measure(*given)
        return found[key]

    with mock.patch.object(plans, "measure", once):
        yield


def on(gpus: int, gpu: str = "h200") -> Cluster:
    return Cluster(gpus=gpus, per_node=8, gpu=gpu_named(gpu), mfu=0.4)


def test_a_published_shape_has_its_published_size_and_time_is_six_n_d():
    found = plan(EIGHT, on(64))["stages"][0]
    tables = ("backbone.model.embed_tokens", "backbone.lm_head", "image_input.places")
    backbone = sum(part["parameters"] for part in found["parts"] if part["part"] not in tables)
    assert backbone == pytest.approx(6.95e9, rel=0.002)
    days = 6 * backbone * 1000 * 64 * 4096 / (64 * 0.4 * 989.4e12) / 86400
    assert found["seconds"] / 86400 == pytest.approx(days, rel=0.02)
    assert found["total"] == 1000 * 64 * 4096
    # bf16 weights, fp32 masters and two moments: 2 + 4 + 8 bytes a parameter.
    assert found["checkpoint"] == pytest.approx(14 * sum(part["parameters"] for part in found["parts"]), rel=1e-6)


def test_what_does_not_fit_is_told_with_the_change_that_fits():
    asked = plan(EIGHT, on(8, "a100-40"))["stages"][0]
    assert not asked["fits"] and "set stages.sft.recompute to True, for" in asked["problems"][0]
    changed = replace(EIGHT, stages={"sft": replace(SFT, recompute=True)})
    assert plan(changed, on(8, "a100-40"))["stages"][0]["fits"]
    alone = plan(EIGHT, on(1, "4090"))["stages"][0]
    assert "offload" in alone["problems"][0] or "GPUs would do" in alone["problems"][0]


def test_thousands_of_gpus_are_planned_on_paper_and_uneven_shares_are_told():
    found = plan(EIGHT, on(4096))["stages"][0]
    assert found["equation"].startswith("16,777,216 tokens a step = 4,096 ranks x 1 accumulated x 1 rows x 4,096 ")
    assert any("can't share" in problem and "16,777,216" in problem for problem in found["problems"])


def test_frozen_backbones_keep_their_weights_and_lose_the_rest():
    few_layers = replace(EIGHT, backbone=replace(EIGHT.backbone, layers=4))
    frozen = replace(few_layers, stages={"sft": replace(SFT, train=Trains(frozen=("backbone",)))})
    lora = replace(few_layers, stages={"sft": replace(SFT, train=Trains(parts=("new_rows",), lora=Lora(rank=8)))})
    whole, some, few = (plan(recipe, on(8))["stages"][0] for recipe in (few_layers, frozen, lora))
    assert some["memory"]["weights"] == whole["memory"]["weights"]
    assert some["memory"]["optimizer"] < whole["memory"]["optimizer"] / 100
    assert some["rate"] > 1.2 * whole["rate"]
    plain, adapted = (next(part for part in found["parts"] if part["part"] == "backbone.model.layers")
                      for found in (whole, few))
    # Seven linear layers of a block: (in + out) x rank each.
    each = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288)
    assert adapted["parameters"] - plain["parameters"] == adapted["trained"] == 4 * 8 * each


def test_a_published_backbone_is_counted_from_its_config_alone(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=128, tie_word_embeddings=True, architectures=["LlamaForCausalLM"]
                ).save_pretrained(tmp_path)
    recipe = replace(TINY, backbone=PretrainedBackbone(path=str(tmp_path)))
    parts = {part["part"]: part["parameters"] for part in plan(recipe, on(1))["stages"][-1]["parts"]}
    assert parts["backbone.model.layers"] == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
    assert parts["backbone.model.norm"] == 64 and "backbone.lm_head" not in parts
    with pytest.raises(ConfigError, match="downloads nothing"):
        plan(replace(TINY, backbone=PretrainedBackbone(path="some/model")), on(1))


def test_a_mixture_of_experts_is_refused_with_the_reason(tmp_path):
    from transformers import Qwen3MoeConfig

    Qwen3MoeConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                   moe_intermediate_size=32, num_experts=4, architectures=["Qwen3MoeForCausalLM"]
                   ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="qwen3_moe.* is a mixture of experts"):
        plan(replace(TINY, backbone=PretrainedBackbone(path=str(tmp_path))), on(1))


def test_a_release_s_image_tokenizer_is_planned_whether_a_stage_trains_it_or_none_does():
    book = replace(TINY.codebooks[0], size=16384)
    released = replace(TINY, image_tokenizer=LlamaGen(weights="vq16.safetensors"), codebooks=(book,),
                       stages={"sft": SFT})
    found = plan(released, on(8))
    # LlamaGen's paper: 72 million parameters.
    assert found["tokenizer"]["elements"] == pytest.approx(72e6, rel=0.01) and found["tokenizer"]["codes"] == 24
    assert found["stages"][0]["memory"]["tokenizer"] == 4 * found["tokenizer"]["elements"]
    assert "24 x 24 codes of 384 x 384 pixels, weights of vq16.safetensors" in text_of_plan(found)
    small = Emu3(image=32, width=32, multipliers=(1, 1, 2, 2), blocks=1)
    tuned = plan(replace(TINY, image_tokenizer=small, codebooks=(replace(book, size=small.size),)), on(2))["stages"][0]
    with torch.device("meta"):
        built = build_tokenizer(small)
    assert sum(part["parameters"] for part in tuned["parts"]) == sum(p.numel() for p in built.parameters())
    assert tuned["memory"]["tokenizer"] == 0 < tuned["memory"]["activations"]


def test_a_step_too_small_for_the_cluster_is_said_to_be():
    assert "too small for this cluster" in text_of_plan(plan(TINY, on(8)))
    assert "too small for this cluster" not in text_of_plan(plan(EIGHT, on(8)))


def test_bytes_of_codes_are_those_that_a_shard_holds(tmp_path):
    rows = [(str(i), Sample((Image(Codes.of_grid(np.zeros((4, 4), np.int32))),))) for i in range(500)]
    facts = write_shard(tmp_path / "codes.arrow", rows, TINY.codebooks[0].size)
    each = plan(TINY, on(1))["data"][0]["bytes_per_image"]
    assert 500 * each == 2 * facts["codes"] + 500 * 5 * 4  # uint16, and five int32 a level
    assert 500 * each < facts["bytes"]


def test_the_text_says_what_the_json_says():
    found = json.loads(json.dumps(plan(TINY, on(16))))
    text = text_of_plan(found)
    assert found["gpus"] == 16 and "16 x h200 on 2 nodes" in text
    for stage in found["stages"]:
        assert stage["equation"] in text and f"{stage['peak'] / 2**30:,.2f} GiB" in text
        assert stage["peak"] == sum(stage["memory"].values())
    assert text.count("can't share") == sum(len(stage["problems"]) for stage in found["stages"]) > 0


def test_impossible_clusters_are_refused():
    with pytest.raises(ConfigError, match="12, which nodes of 8"):
        on(12)
    with pytest.raises(ConfigError, match="mfu is 1.4"):
        Cluster(gpus=8, per_node=8, gpu=gpu_named("h200"), mfu=1.4)
