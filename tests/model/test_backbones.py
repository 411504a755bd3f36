"""Published models: their own class and ours, the same weights, the same logits."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from model.released import KINDS, ROWS, layout_of, logits_of, theirs

from unimm.config.model import PretrainedBackbone, SharedTable
from unimm.model.backbone import build_backbone
from unimm.model.cache import RowCache
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
    return model, UnifiedModel(backbone, vocab, ImageInput()).eval()


@torch.no_grad()
def test_packed_rows_give_the_logits_that_each_document_has_in_its_own_class(pair):
    model, ours = pair
    lengths = ((3, 12, 1, 4), (14, 3))  # the second row ends in padding; documents are longer than windows of 6
    ids = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, 20)))
    position, document = torch.zeros(2, 20, dtype=torch.long), torch.zeros(2, 20, dtype=torch.long)
    spans = [(r, end - n, end) for r, row in enumerate(lengths) for n, end in zip(row, accumulate(row))]
    for number, (r, start, end) in enumerate(spans):
        position[r, start:end], document[r, start:end] = torch.arange(end - start), number + 1
    found = ours.head((slice(0, ROWS),))(ours.hidden(ids, position, document), None)
    for r, start, end in spans:
        expected = logits_of(model, ids[r:r + 1, start:end])[0]
        assert expected.std() > 0.3
        assert (found[r, start:end] - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_rows_read_in_unequal_pieces_each_at_its_own_place_give_the_logits_of_each_alone(pair):
    model, ours = pair
    ids = torch.from_numpy(np.random.default_rng(1).integers(256, size=(3, 19)))
    expected, table = logits_of(model, ids), ours.backbone.get_input_embeddings()
    cache, length = RowCache(2, 16, torch.device("cpu")), np.zeros(3, np.int64)

    def read(first, *pieces):
        rows, t = slice(first, first + len(pieces)), max(pieces)
        given = torch.full((len(pieces), t), 258)  # what pads a row on its right is seen by nobody
        for given_row, row, n in zip(given, range(first, rows.stop), pieces):
            given_row[:n] = ids[row, length[row]:length[row] + n]
        hidden = ours.read(table(given), length[rows], cache, first)
        for states, row, n in zip(hidden, range(first, rows.stop), pieces):
            found = ours.head((slice(0, ROWS),))(states[:n], None)
            assert (found - expected[row, length[row]:length[row] + n]).abs().max() <= 1e-4
        length[rows] += pieces

    read(0, 9, 4)
    cache.reserve(3, 24)
    read(2, 6)
    read(0, 1, 1, 1)
    read(0, 2, 4, 3)
    read(1, 1, 1)
    cache.move(0, 2, length[0])
    ids[2], expected[2], length[2] = ids[0], expected[0], length[0]
    read(1, 1, 1)
    read(2, 4)
    read(0, 1)
