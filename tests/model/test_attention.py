"""Every kernel equals attention in float64 over each document alone; transformers' models attend as they do alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from model.families import FAMILIES, tiny
from torch.nn import functional as F

from unimm.config.check import ConfigError
from unimm.model import attention
from unimm.model.attention import Documents, attend, choose, use_packed_attention

ROWS = ((5, 1, 17, 9), (30,), (12, 11))  # rows of 32: the third ends in padding
IDS = torch.tensor([sum(([n] * length for n, length in enumerate(row, 1)), [])
                    + [0] * (32 - sum(row)) for row in ROWS])
WINDOWS, CAPS = (None, 2, 4, 16, 64), (None, 2.0)
ON_CPU = ("mask", "documents")
ON_GPU = ("varlen (torch)", "flex (torch)", "flash-attn 2", "flash-attn 4")


def reference(query, key, value, scale, window, cap):
    """Float64, one document and one head at a time, straight from the definition."""
    q, k, v = (x.detach().double().cpu().requires_grad_() for x in (query, key, value))
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    groups = q.shape[1] // k.shape[1]
    rows = []
    for row, lengths in enumerate(ROWS):
        ends = np.cumsum([0, *lengths]).tolist()
        heads = []
        for head in range(q.shape[1]):
            pieces = []
            for start, stop in pairwise(ends):
                for at in range(start, stop):
                    low = start if window is None else max(start, at - window + 1)
                    s = k[row, head // groups, low:at + 1] @ q[row, head, at] * scale
                    s = s if cap is None else cap * torch.tanh(s / cap)
                    pieces.append(torch.softmax(s, 0) @ v[row, head // groups, low:at + 1])
            pieces += [torch.zeros(v.shape[3], dtype=torch.float64)] * (out.shape[2] - ends[-1])
            heads.append(torch.stack(pieces))
        rows.append(torch.stack(heads))
    return torch.stack(rows).transpose(1, 2), (q, k, v)


def compare(kernel, dtype, device, window, cap, tolerance, backward=True, width=16):
    """Output and gradients of a kernel against the reference, at the documents' positions."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 32, width), (3, 2, 32, width), (3, 2, 32, width))
    inputs = [(torch.randn(shape, generator=generator) * 2).to(device, dtype).requires_grad_(backward)
              for shape in shapes]
    documents = Documents(IDS.to(device), ROWS, kernel)
    real = (IDS > 0)[:, :, None, None]
    expected, exact = reference(*inputs, 0.4, window, cap)
    found, _ = attend(None, *inputs, None, 0.4, documents, sliding_window=window, softcap=cap)
    assert found.dtype == dtype and found.is_contiguous()
    close(found.cpu().double() * real, expected * real, tolerance)
    if backward:
        direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64) * real
        wanted = torch.autograd.grad(expected, exact, direction)
        given = torch.autograd.grad(found, inputs, direction.to(device, dtype))
        for a, b in zip(given, wanted):
            close(a.cpu().double(), b, tolerance)


def close(found, expected, tolerance):
    apart = (found - expected).abs().max() / expected.abs().max()
    assert apart < tolerance, f"{float(apart):.2g} apart"


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kernel", ON_CPU)
def test_a_kernel_on_the_cpu_equals_float64_with_its_gradients(kernel, window, cap):
    compare(kernel, torch.float32, "cpu", window, cap, 1e-5)
    compare(kernel, torch.bfloat16, "cpu", window, cap, 3e-2)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("window", (None, 4))
def test_flex_attention_equals_float64(window, cap):
    compare("flex (torch)", torch.float32, "cpu", window, cap, 1e-5, backward=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kernel", ON_CPU + ON_GPU)
def test_a_kernel_on_a_gpu_equals_float64_with_its_gradients(kernel, window, cap):
    if kernel in ON_GPU and kernel not in attention.available(torch.device("cuda")):
        pytest.skip(f"{kernel} is not installed")
    if kernel == "varlen (torch)" and cap is not None:
        pytest.skip("has no soft cap")
    compare(kernel, torch.bfloat16, "cuda", window, cap, 3e-2, width=64)


def test_documents_are_the_same_whether_the_host_counted_them_or_reads_them_back():
    counted, read = Documents(IDS, ROWS), Documents(IDS)
    assert counted.edges == read.edges == [0, 5, 6, 23, 32, 62, 64, 76, 87, 96]
    assert counted.starts[0].tolist() == counted.edges and counted.starts[1] == 30
    assert Documents(IDS[:2], ROWS).edges == read.edges[:7]  # lengths of other rows are not believed


def test_the_kernel_follows_what_there_is():
    everything = frozenset(ON_GPU)
    half, whole = torch.bfloat16, torch.float32
    assert choose(everything, half, 4096, 128, False) == "flash-attn 4"
    assert choose(everything, half, 4096, 256, True) == "flash-attn 2"
    assert choose(everything - {"flash-attn 2", "flash-attn 4"}, half, 64, 128, False) == "varlen (torch)"
    assert choose(everything - {"flash-attn 2", "flash-attn 4"}, half, 4096, 128, True) == "flex (torch)"
    assert choose(everything, whole, 4096, 128, False) == "flex (torch)"
    assert choose(frozenset(), whole, 4096, 128, False) == "documents"
    assert choose(frozenset(), half, 256, 128, True) == "mask"
    assert choose(frozenset(), whole, 256, 128, True) == "mask"
    assert choose(frozenset(), half, 512, 128, True) == "documents"


@pytest.mark.parametrize("kernel", ON_CPU)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_transformers_own_eager_attention_over_each_document_alone(family, kernel):
    model = tiny(family)
    ids = torch.randint(64, IDS.shape, generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("eager")
    alone = [model(ids[row:row + 1, start:stop]).logits[0] for row, lengths in enumerate(ROWS)
             for start, stop in pairwise(np.cumsum([0, *lengths]).tolist())]
    use_packed_attention(model)
    position = torch.cat([torch.arange(n) for row in ROWS for n in (*row, 32 - sum(row))]).view(IDS.shape)
    packed = model(inputs_embeds=model.get_input_embeddings()(ids), position_ids=position, use_cache=False,
                   documents=Documents(IDS, ROWS, kernel)).logits
    found = packed[IDS > 0]
    assert len(found) == len(torch.cat(alone))
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=0)
    # The window must be at work, or this shows nothing.
    wide = tiny(family, sliding_window=64).eval()
    wide.set_attn_implementation("eager")
    assert (wide(ids[1:2, :30]).logits[0] - alone[4]).abs().max() > 1e-2


def test_what_packed_attention_cannot_express_is_refused_with_the_reason():
    import transformers as tf

    shape = dict(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                 intermediate_size=16, head_dim=8)
    sinks = tf.GptOssForCausalLM(tf.GptOssConfig(**shape, num_local_experts=2))
    with pytest.raises(ConfigError, match="gpt_oss can't be trained on packed rows: it has attention sinks"):
        use_packed_attention(sinks)
    mixed = tf.Qwen3NextForCausalLM(tf.Qwen3NextConfig(
        **shape, layer_types=["linear_attention"], linear_num_key_heads=1, linear_num_value_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, moe_intermediate_size=8))
    with pytest.raises(ConfigError, match="layers of linear_attention, through which packed documents"):
        use_packed_attention(mixed)
    old = tf.BloomForCausalLM(tf.BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match="bloom can't be trained .* does not attend through transformers' attention"):
        use_packed_attention(old)
    query = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ConfigError, match="asks for dropout.*set attention_dropout to 0"):
        attend(torch.nn.Identity(), query, query, query, None, dropout=0.1)


def test_autocast_attends_in_its_precision():
    query, key, value = torch.randn(3, 3, 4, 32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(None, query, key, value.bfloat16(), None, None, Documents(IDS, ROWS))
    assert found.dtype == torch.bfloat16
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=Documents(IDS, ROWS).mask(None))
    torch.testing.assert_close(found.transpose(1, 2).float(), expected, atol=0.05, rtol=0.05)
