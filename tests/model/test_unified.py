import numpy as np
import pytest
import torch

from unimm.config.check import ConfigError
from unimm.config.model import FreshBackbone, PretrainedBackbone, SharedTable
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.layout import Layout
from unimm.model import attention
from unimm.model.attention import documents_of
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel
from unimm.sample import Batch
from unimm.text import BytesTokenizer

LAYOUT = Layout(
    LayoutConfig(write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"), sizes=((2, 2),)),
    BytesTokenizer(), (Codebook(name="visual", size=8),))
TINY = dict(width=16, layers=2, heads=4, kv_heads=2, mlp=32)


def tiny(family: str):
    torch.manual_seed(0)
    backbone = build_backbone(FreshBackbone(family=family, **TINY), LAYOUT.vocab, SharedTable(rows="normal"), {})
    for parameter in backbone.parameters():  # at the usual tiny spread every output looks alike
        parameter.data.mul_(4.0)
    return backbone.eval()


def unified(backbone, places: int = 0, **more) -> UnifiedModel:
    begins = [LAYOUT.vocab.special["<boi>"]]
    image_input = ImageInput(SharedTable(places=places), LAYOUT.vocab, begins, 16)
    return UnifiedModel(backbone, LAYOUT.vocab, image_input, **more)


@pytest.mark.parametrize("longest", [0, 512], ids=["loop over documents", "one mask"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_attention_over_packed_rows_equals_each_document_alone(family, longest, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_MASKED_ROW", longest)
    backbone = tiny(family)
    model = unified(backbone)
    rng = np.random.default_rng(0)
    rows = [[3, 9, 1, 4], [12, 3]]  # the second row ends in two positions of padding
    ids, position, document = np.zeros((2, 17), int), np.zeros((2, 17), int), np.zeros((2, 17), int)
    alone = {}
    for row, lengths in enumerate(rows):
        start = 0
        for n, length in enumerate(lengths):
            span = slice(start, start + length)
            ids[row, span] = rng.integers(260, size=length)
            position[row, span], document[row, span] = np.arange(length), n + 1
            backbone.set_attn_implementation("eager")
            alone[row, start, length] = backbone.model(torch.tensor(ids[row:row + 1, span])).last_hidden_state
            backbone.set_attn_implementation(attention.NAME)
            start += length
    hidden = model.hidden(torch.tensor(ids), torch.tensor(position), torch.tensor(document))
    for (row, start, length), expected in alone.items():
        torch.testing.assert_close(hidden[row:row + 1, start:start + length], expected, atol=1e-5, rtol=1e-5)


def test_plain_products_equal_the_fused_kernel_under_the_same_mask():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    mask = documents_of(torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2, 2]])).mask
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attention._by_hand(query, key, value, mask, None), expected)
    half = [x.bfloat16() for x in (query, key, value)]
    found, _ = attention.attend(None, *half, mask)
    torch.testing.assert_close(found.transpose(1, 2).float(), expected, atol=0.05, rtol=0.05)


def test_documents_of_long_rows_are_spans_that_cover_every_position(monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_MASKED_ROW", 0)
    found = documents_of(torch.tensor([[1, 1, 2, 0], [1, 2, 3, 3]]))
    assert found.spans == ((0, 0, 2), (0, 2, 3), (0, 3, 4), (1, 0, 1), (1, 1, 2), (1, 2, 4))


def batch(ids, learn, image):
    ids = np.array([ids])
    return Batch(ids=ids, targets=np.roll(ids, -1, 1), learn=np.array([learn], bool), image=np.array([image], bool),
                 position=np.arange(ids.shape[1])[None], document=np.ones_like(ids))


def test_the_loss_is_the_weighted_sum_over_learned_positions_with_text_and_image_apart():
    backbone = tiny("qwen3")
    b = batch([1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0])
    model = unified(backbone, image_weight=0.5)
    losses = model(b)
    logits = backbone(torch.tensor(b.ids)).logits[0].detach().double().numpy()
    nll = [np.log(np.exp(row).sum()) - row[t] for row, t in zip(logits, b.targets[0])]
    assert float(losses.parts["text"][0]) == pytest.approx(nll[1], abs=1e-5)
    assert float(losses.parts["image"][0]) == pytest.approx(nll[2] + nll[4], abs=1e-5)
    assert int(losses.parts["image"][1]) == 2
    assert float(losses.total.detach()) == pytest.approx(nll[1] + 0.5 * nll[2] + 0.5 * nll[4], abs=1e-5)
    assert model.weigh(b) == (2.0, 6)


def test_a_batch_without_a_learned_position_runs_and_reaches_every_parameter():
    """Defect 16: a module skipped on one rank hangs the others."""
    model = unified(tiny("qwen3"))
    model(batch([1, 2, 3], [0, 0, 0], [0, 0, 0])).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())


def test_new_rows_start_as_the_recipe_says(tmp_path):
    vectors = {"visual": torch.randn(8, 3)}
    old = tiny("llama")
    old.resize_token_embeddings(200)
    old.save_pretrained(tmp_path)
    for rows in ("mean", "normal", "codebook"):
        torch.manual_seed(1)
        table = build_backbone(PretrainedBackbone(path=str(tmp_path)), LAYOUT.vocab, SharedTable(rows=rows), vectors
                               ).get_input_embeddings().weight.detach()
        before = old.get_input_embeddings().weight.detach()
        assert torch.equal(table[:200], before) and len(table) == LAYOUT.vocab.rows
        assert 0.5 < table[200:].std() / before.std() < 2
        if rows == "codebook":
            codes = LAYOUT.vocab.ranges["visual"]
            assert torch.linalg.matrix_rank(table[codes.start:codes.stop], atol=1e-4) == 3
    with pytest.raises(ConfigError, match="codebook 'visual' has no vectors"):
        build_backbone(FreshBackbone(**TINY), LAYOUT.vocab, SharedTable(rows="codebook"), {})


def test_a_code_is_read_with_its_place_in_its_own_image_also_piece_by_piece():
    model = unified(tiny("qwen3"), places=4)
    table, begin = model.backbone.get_input_embeddings(), LAYOUT.vocab.special["<boi>"]
    end, code = LAYOUT.vocab.special["<eoi>"], LAYOUT.vocab.ranges["visual"].start
    ids = torch.tensor([[7, begin, code, code + 1, code, code, end, 9, begin, code + 3, code, code, code, end]])
    places = torch.tensor([[-1, -1, 0, 1, 2, 3, -1, -1, -1, 0, 1, 2, 3, -1]])
    expected = table(ids) + torch.where(places[..., None] >= 0, model.image_input.places(places.clamp_min(0)), 0)
    whole, count = model.image_input(table, ids)
    torch.testing.assert_close(whole, expected)
    assert count.tolist() == [4]
    count = None
    for at in range(ids.shape[1]):
        piece, count = model.image_input(table, ids[:, at:at + 1], count)
        torch.testing.assert_close(piece, expected[:, at:at + 1])
