"""Layers recomputed or compiled give the gradients of plain ones."""

import shutil

import numpy as np
import pytest
import torch

from unimm.config.check import ConfigError
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.layout import Layout
from unimm.model.attention import Documents, use_packed_attention
from unimm.model.backbone import build_backbone, compile_layers, recompute_layers
from unimm.text import BytesTokenizer

VOCAB = Layout(
    LayoutConfig(write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"), sizes=((2, 2),)),
    BytesTokenizer(), (Codebook(name="visual", size=8),)).vocab


def backbone():
    torch.manual_seed(0)
    shape = FreshBackbone(width=16, layers=2, heads=2, kv_heads=2, mlp=32)
    return build_backbone(shape, VOCAB, SharedTable(rows="normal"), {}).train()


def gradients(model, lengths=((20, 12), (32,))) -> dict[str, torch.Tensor]:
    """Of a sum over packed rows of documents of these lengths, by parameter."""
    documents = torch.tensor(np.stack([np.repeat(np.arange(1, len(row) + 1), row) for row in lengths]))
    positions = torch.tensor(np.stack([np.concatenate([np.arange(n) for n in row]) for row in lengths]))
    ids = torch.randint(0, 250, documents.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    out = model.model(inputs_embeds=model.get_input_embeddings()(ids), position_ids=positions,
                      documents=Documents(documents), use_cache=False).last_hidden_state
    out.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_recomputed_layers_run_again_in_backward_and_give_the_same_gradients(reentrant, frozen):
    plain, again = backbone(), backbone()
    recompute_layers(again, reentrant)
    seen = []
    again.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: seen.append(1))
    for model in (plain, again):
        model.get_input_embeddings().requires_grad_(not frozen)
    want, found = gradients(plain), gradients(again)
    assert len(seen) == 2 and want.keys() == found.keys() and len(want) > 10
    assert all(torch.equal(want[name], found[name]) for name in want)


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_layers_give_the_same_gradients_also_at_another_packing(recomputed, monkeypatch):
    plain, fast = backbone(), backbone()
    torch._dynamo.reset()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    try:
        compile_layers(fast, recomputed, backend="aot_eager")  # all but code generation, which takes a minute
        if recomputed:
            recompute_layers(fast, reentrant=False)
        for lengths in (((20, 12), (32,)), ((5, 5, 22), (31, 1))):
            want, found = gradients(plain, lengths), gradients(fast, lengths)
            for name in want:
                torch.testing.assert_close(found[name], want[name], atol=2e-3, rtol=1e-4)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    finally:
        use_packed_attention(plain)


def test_compiling_without_a_compiler_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="needs a C.. compiler .g... here; install it, or set compile to False"):
        compile_layers(backbone(), False)
