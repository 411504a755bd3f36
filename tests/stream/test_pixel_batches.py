"""Pixels in batches: each image once an epoch, exact resume, any number of processes."""

import json

import numpy as np
import pytest

from unimm.config.check import ConfigError
from unimm.sample import Image, Pictures, Pixels, Sample, Text
from unimm.stream.batches import PixelBatches, images_of
from unimm.stream.sources import Item


def images(count):
    """Images that show their number, which is said of them too."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((2, 3, 3), np.uint8)
    return Pictures(pixels, tuple(map(str, range(count))))


def shown(batch):
    numbers = batch.pixels[:, 0, 0, 0].tolist()
    assert batch.pixels.dtype == np.uint8 and batch.pixels.shape[1:] == (2, 3, 3)
    assert batch.texts == tuple(map(str, numbers)), "a picture came with another one's words"
    return numbers


def test_every_image_comes_once_an_epoch_and_epochs_differ():
    stream = PixelBatches([images(20)], [1.0], rows=5, seed=0)
    epochs = [sum((shown(stream.next()) for _ in range(4)), []) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2 and epochs[0] != epochs[1]


def test_it_goes_on_from_json_at_another_number_of_processes():
    data = [images(20), images(7)]
    alone = PixelBatches(data, [3.0, 1.0], rows=6, seed=2)
    alone.next()
    state = json.loads(json.dumps(alone.state()))
    halves = [PixelBatches(data, [3.0, 1.0], rows=6, seed=2, rank=rank, world=2) for rank in range(2)]
    for half in halves:
        half.restore(state)
    for _ in range(5):
        assert shown(alone.next()) == sum((shown(half.next()) for half in halves), [])
    assert alone.state() == halves[0].state() == halves[1].state()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="batch is 5, which 2 processes can't share evenly"):
        PixelBatches([images(4)], [1.0], rows=5, seed=0, world=2)
    with pytest.raises(ConfigError, match="has no images"):
        PixelBatches([images(4), images(0)], [1.0, 1.0], rows=4, seed=0)
    with pytest.raises(ConfigError, match="uses was"):
        PixelBatches([images(4)], [1.0], 4, 0).restore(PixelBatches([images(5)], [1.0], 4, 0).state())


def test_all_images_of_a_source_are_brought_to_one_size_and_bad_rows_counted():
    picture = Image(Pixels(np.full((6, 5, 3), 9, np.uint8)))
    rows = {"a": Sample((picture, Text("x"), picture)), "b": "torn", "c": Sample((Text("words", learn=True),)),
            "d": Sample((picture, Text("nine")))}
    items = [Item(key, lambda found=found: found) for key, found in rows.items()]
    found, skipped = images_of(items, 4)
    assert found.pixels.shape == (3, 4, 4, 3) and (found.pixels == 9).all() and skipped == 1
    assert found.texts == ("", "", "nine")
