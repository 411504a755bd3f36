"""The count of multiplications against the products that a forward pass really makes."""

from dataclasses import replace

import pytest
import torch
from tiny import TINY
from torch.utils.flop_counter import FlopCounterMode

from unimm.config.model import FreshBackbone
from unimm.config.trains import Lora
from unimm.images.tokenizer import build_tokenizer
from unimm.model.backbone import multiplied
from unimm.model.lora import adapt
from unimm.system import layout_of, new_model
from unimm.text import BytesTokenizer

LENGTH = 48


def model(family="qwen3"):
    recipe = replace(TINY, backbone=FreshBackbone(family=family, width=64, layers=3, heads=4, kv_heads=2, mlp=96))
    return new_model(recipe, layout_of(recipe, BytesTokenizer()), build_tokenizer(recipe.image_tokenizer))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_weights_are_those_that_a_forward_pass_multiplies_with(family, lora):
    """Attention apart, which torch's counter leaves out on a CPU."""
    built = model(family)
    if lora:
        adapt(built, Lora(rank=2))
    ids, position = torch.ones(1, LENGTH, dtype=torch.long), torch.arange(LENGTH)[None]
    with FlopCounterMode(display=False) as flops:
        hidden = built.hidden(ids, position, torch.ones_like(ids))
        built.head((slice(None),))(hidden[0], None)
    found = multiplied(built.backbone)
    frozen = found.frozen_body + found.frozen_head
    assert 3 * flops.get_total_flops() / LENGTH - 2 * frozen == found.flops(0)
    assert (found.layers, found.width) == (3, 64)


def test_only_learned_tokens_reach_the_head_and_frozen_weights_have_no_gradient():
    built = model()
    rows = built.vocab.rows
    whole = multiplied(built.backbone)
    assert whole.head == 64 * rows
    assert whole.flops(10, 1.0) - whole.flops(10, 0.25) == 6 * 0.75 * 64 * rows
    for p in built.backbone.model.layers.parameters():
        p.requires_grad_(False)
    assert whole.flops(10) - multiplied(built.backbone).flops(10) == 2 * whole.body
