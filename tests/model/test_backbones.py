"""Published models: their own class and ours, the same weights, the same logits."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from model.released import KINDS, ROWS, layout_of, logits_of, theirs

from unimm.config.model import PretrainedBackbone, SharedTable
from unimm.model.backbone import build_backbone
from unimm.model.cache import KVCache
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(transformers' model, ours from the folder that it saved)"""
    folder = tmp_path_factory.mktemp("released")
    model = theirs(request.param)
    model.save_pretrained(folder)
    vocab = layout_of(request.param).vocab
    backbone = build_backbone(PretrainedBackbone(path=str(folder), rows="all"), vocab, SharedTable(), {})
    image_input = ImageInput(SharedTable(), vocab, [], 32)
    return model, UnifiedModel(backbone, vocab, image_input).eval()


@torch.no_grad()
def test_packed_rows_give_the_logits_that_each_document_has_in_its_own_class(pair):
    model, ours = pair
    lengths = ((3, 12, 1, 4), (14, 3))  # the second row ends in padding; documents are longer than windows of 6
    ids = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, 20)))
    position, document = torch.zeros(2, 20, dtype=torch.long), torch.zeros(2, 20, dtype=torch.long)
    spans = [(r, end - n, end) for r, row in enumerate(lengths) for n, end in zip(row, accumulate(row))]
    for number, (r, start, end) in enumerate(spans):
        position[r, start:end], document[r, start:end] = torch.arange(end - start), number + 1
    found = ours.logits(ours.hidden(ids, position, document), slice(0, ROWS))
    for r, start, end in spans:
        expected = logits_of(model, ids[r:r + 1, start:end])[0]
        assert expected.std() > 0.3
        assert (found[r, start:end] - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_rows_padded_on_the_left_give_the_same_logits_over_the_cache(pair):
    model, ours = pair
    width, lengths = 16, torch.tensor([[9], [16], [12]])
    ids = torch.from_numpy(np.random.default_rng(1).integers(256, size=(3, width)))
    real = torch.arange(width) >= width - lengths
    ids = ids.masked_fill(~real, 258)
    position = (torch.arange(width) - (width - lengths)).clamp_min(0)
    expected = logits_of(model, ids, attention_mask=real.long(), position_ids=position)[:, -4:]
    cache, split = KVCache(width), width - 4
    seen = torch.ones(width, width, dtype=torch.bool).tril() & real[:, None] | torch.eye(width, dtype=torch.bool)
    steps = [slice(0, split + 1), *(slice(at, at + 1) for at in range(split + 1, width))]
    for n, step in enumerate(steps):
        mask = seen[:, None, step, :step.stop]
        hidden, _ = ours.read_on(ids[:, step], position[:, step], mask, cache, None)
        assert (ours.logits(hidden, slice(0, ROWS)) - expected[:, n]).abs().max() <= 1e-4
