"""Where new rows start: in both tables, as the recipe says, and old rows stay."""

import numpy as np
import pytest
import torch
from model.released import ROWS, layout_of, theirs

from unimm.config.check import ConfigError
from unimm.config.model import FreshBackbone, PretrainedBackbone, SharedSoftmax, SharedTable
from unimm.config.tokens import Codebook
from unimm.layout import Layout
from unimm.model.backbone import build_backbone, like
from unimm.text import BytesTokenizer

BOOK = 128
LAYOUT = Layout(layout_of("llama").config, BytesTokenizer(), (Codebook(name="visual", size=BOOK),))
VOCAB = LAYOUT.vocab
CODES = VOCAB.ranges["visual"]
SHARED = SharedTable()
VECTORS = {"visual": torch.randn(BOOK, 3)}
assert VOCAB.text_size < ROWS < VOCAB.rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of two tables, with rows of no id behind those of its 256 texts."""
    path = tmp_path_factory.mktemp("llama")
    theirs("llama").save_pretrained(path)
    return path


def tables(folder, image_in=SHARED, image_out=None, **backbone):
    torch.manual_seed(1)
    made = build_backbone(PretrainedBackbone(path=str(folder), **backbone), VOCAB, image_in, VECTORS, image_out)
    pair = made.get_input_embeddings().weight.detach(), made.get_output_embeddings().weight.detach()
    old = theirs("llama")
    before = old.get_input_embeddings().weight.detach(), old.get_output_embeddings().weight.detach()
    known = made.rows_known
    for table, was in zip(pair, before):
        assert table.shape == (VOCAB.rows, 32) and torch.equal(table[:known], was[:known])
    return pair, tuple(was[:known] for was in before), known


def test_rows_drawn_as_the_old_ones_have_their_mean_and_covariance():
    """Hewitt 2021. Independent noise of the right size would miss every product of two channels."""
    rng = torch.Generator().manual_seed(0)
    old = torch.randn(500, 12, generator=rng) @ torch.randn(12, 12, generator=rng) + 3 * torch.randn(12, generator=rng)
    torch.manual_seed(0)
    new = like(old, 200_000).double()
    expected = np.cov(old.double().numpy().T, bias=True)
    np.testing.assert_allclose(np.cov(new.numpy().T), expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_allclose(new.mean(0), old.double().mean(0), atol=0.03)
    assert np.abs(expected - np.diag(np.diag(expected))).max() > 0.2 * expected.max()
    narrow = like(old, 50_000, 3.2e-5)
    torch.testing.assert_close(narrow, old.mean(0).expand_as(narrow), atol=1e-2, rtol=1e-3)
    assert narrow.std(0).max() > 0


def test_fewer_old_rows_than_channels_span_the_new_ones():
    old = torch.randn(4, 16)
    new = like(old, 100)
    outside = torch.linalg.svd(old - old.mean(0)).Vh[3:]
    assert ((new - old.mean(0)) @ outside.T).std() < 1e-2 < (new - old.mean(0)).std()


def test_the_ways_to_start_in_both_tables(folder):
    for image_in, check in (
        (SharedTable(rows="mean"), lambda new, old: torch.allclose(new, old.mean(0).expand_as(new), atol=1e-5)),
        (SharedTable(rows="normal"), lambda new, old: new.mean(0).abs().max() < 0.3 and 0.8 < new.std() / old.std()),
        (SharedTable(), lambda new, old: 0.8 < new.std() / old.std() < 1.2),
    ):
        new, old, known = tables(folder, image_in)
        assert known == VOCAB.text_size
        assert all(check(table[known:], was) for table, was in zip(new, old)), image_in


def test_codes_start_like_their_own_vectors(folder):
    (table, head), _, _ = tables(folder, SharedTable(rows="codebook"))
    for rows in (table, head):
        assert torch.linalg.matrix_rank(rows[CODES.start:CODES.stop], atol=1e-3) == 3
        like_first = torch.nn.functional.cosine_similarity(rows[CODES.start], rows[CODES.start:CODES.stop], dim=1)
        vectors = (VECTORS["visual"] - VECTORS["visual"].mean(0)) / VECTORS["visual"].std(0)
        near = torch.nn.functional.cosine_similarity(vectors[0], vectors, dim=1)
        assert np.corrcoef(like_first, near)[0, 1] > 0.6
    with pytest.raises(ConfigError, match="codebook 'visual' has no vectors"):
        build_backbone(FreshBackbone(), VOCAB, SharedTable(rows="codebook"), {})


def test_a_head_may_start_at_zero_where_it_is_not_the_table(folder, tmp_path):
    (table, head), (old, _), known = tables(folder, image_out=SharedSoftmax(rows="zero"))
    assert not head[known:].any() and table[known:].std() > 0.5 * old.std()
    theirs("qwen2").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="one table"):
        build_backbone(PretrainedBackbone(path=str(tmp_path)), VOCAB, SharedTable(), {}, SharedSoftmax(rows="zero"))


def test_a_tied_table_stays_one(tmp_path):
    theirs("qwen2").save_pretrained(tmp_path)
    made = build_backbone(PretrainedBackbone(path=str(tmp_path)), VOCAB, SharedTable(), {})
    assert made.get_input_embeddings().weight is made.get_output_embeddings().weight
    assert made.get_output_embeddings().out_features == VOCAB.rows


def test_a_scaled_embedding_scales_new_rows_too(tmp_path):
    theirs("gemma3").save_pretrained(tmp_path)
    made = build_backbone(PretrainedBackbone(path=str(tmp_path)), VOCAB, SharedTable(), {})
    ids = torch.tensor([[5, CODES.start]])
    rows = made.get_input_embeddings().weight[ids]
    torch.testing.assert_close(made.get_input_embeddings()(ids), rows * 32**0.5)
    whole = made.base_model(input_ids=ids).last_hidden_state
    given = made.base_model(inputs_embeds=made.get_input_embeddings()(ids)).last_hidden_state
    torch.testing.assert_close(given, whole)


def test_all_rows_of_a_released_unified_model_stay(folder, tmp_path):
    _, _, known = tables(folder, rows="all")
    assert known == ROWS
    layout = layout_of("emu3")
    emu3 = theirs("emu3")
    emu3.save_pretrained(tmp_path)
    made = build_backbone(PretrainedBackbone(path=str(tmp_path)), layout.vocab, SharedTable(), {})
    assert made.rows_known == ROWS
    assert torch.equal(made.lm_head.weight, emu3.lm_head.weight)
