"""Adapters by peft: what they adapt, and that merging them changes no logit."""

import copy

import pytest
import torch
from torch import nn

from unimm.config.check import ConfigError
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.config.trains import Lora, Trains
from unimm.layout import Layout
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput, Places
from unimm.model.lora import adapt, is_adapter, merge, plain_name
from unimm.model.unified import UnifiedModel
from unimm.text import BytesTokenizer
from unimm.train import trains

LAYOUT = Layout(
    LayoutConfig(write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"), sizes=((2, 2),)),
    BytesTokenizer(), (Codebook(name="visual", size=8),))


def tiny(family: str = "qwen3", tied: bool = False) -> UnifiedModel:
    torch.manual_seed(0)
    shape = FreshBackbone(family=family, width=16, layers=2, heads=4, kv_heads=2, mlp=32)
    backbone = build_backbone(shape, LAYOUT.vocab, SharedTable(rows="normal"), {})
    if tied:
        backbone.lm_head.weight = backbone.model.embed_tokens.weight
    for p in backbone.parameters():  # at the usual tiny spread every output looks alike
        p.data.mul_(4.0 if p.ndim == 2 else 1.0)
    image_input = ImageInput(Places(4, LAYOUT.vocab.is_code, [LAYOUT.vocab.special["<boi>"]], 16))
    return UnifiedModel(backbone, LAYOUT.vocab, image_input).eval()


def adapted(lora: Lora, **kind) -> UnifiedModel:
    """Adapters as after training: neither factor zero."""
    model = tiny(**kind)
    adapt(model, lora)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if is_adapter(name):
            p.data.normal_(0.0, 0.1)
    return model.eval()


def logits(model: UnifiedModel) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12) * 10
    with torch.no_grad():
        return model.backbone.lm_head(model.hidden(ids, torch.arange(12).expand(2, 12), torch.ones(2, 12, dtype=int)))


@pytest.mark.parametrize("tied", [False, True], ids=["two tables", "tied"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_merged_adapters_give_the_logits_of_unmerged_ones(family, tied):
    model = adapted(Lora(rank=3, alpha=6.0, dropout=0.5), family=family, tied=tied)
    before = logits(model)
    assert (before - logits(tiny(family, tied))).abs().max() > 0.1
    merge(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert model.state_dict().keys() == tiny(family, tied).state_dict().keys()
    assert type(model.backbone.model.layers[0].mlp.up_proj) is nn.Linear


def test_a_merged_weight_is_the_papers_formula():
    model = adapted(Lora(rank=2, alpha=5.0, targets=("q_proj",)))
    plain = copy.deepcopy(tiny())
    found = dict(model.named_parameters())
    merge(model)
    for name, p in plain.named_parameters():
        a = found.get(name.replace(".weight", ".lora_A.default.weight"))
        if a is not None:
            p.data += 5.0 / 2 * found[name.replace(".weight", ".lora_B.default.weight")] @ a
        torch.testing.assert_close(model.get_parameter(name), p, msg=name)


@pytest.mark.parametrize("targets, layers", [
    (("all-linear",), 14), (("q_proj", "v_proj"), 4), (("layers.1.*",), 7), (("layers.0.mlp",), 3)])
def test_targets_are_linear_layers_inside_blocks_by_name(targets, layers):
    model = adapted(Lora(targets=targets))
    names = {plain_name(name) for name, _ in model.named_parameters() if is_adapter(name)}
    assert len(names) == layers and names <= {name for name, _ in tiny().named_parameters()}


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "image_input", "q_prj"])
def test_other_targets_are_refused(target):
    said = "did you mean 'q_proj'" if target == "q_prj" else "tables and heads train by train.parts"
    with pytest.raises(ConfigError, match=f"train.lora.targets has '{target}'.*{said}"):
        adapt(tiny(), Lora(targets=("q_proj", target)))


@pytest.mark.parametrize("part, count", [("all", 26), ("backbone", 23), ("embeddings", 1), ("head", 1), ("norms", 9),
                                         ("image_input", 1), ("mlp", 6), ("layers.[01].input_layernorm", 2)])
def test_the_language_model_s_parts_by_the_words_of_the_field(part, count):
    model = tiny()
    trains.apply(model, Trains(parts=(part,)), {}, model.parts())
    assert sum(p.requires_grad for p in model.parameters()) == count


def test_tied_tables_are_in_both_parts():
    model = tiny(tied=True)
    parts = model.parts()
    assert parts["embeddings"] == parts["head"] == ["backbone.model.embed_tokens.weight", "backbone.lm_head.weight"]
    trains.apply(model, Trains(parts=("head",)), {}, parts)
    assert model.backbone.get_input_embeddings().weight.requires_grad
