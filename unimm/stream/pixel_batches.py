"""Batches of pixels for a stage that trains the image tokenizer: the contract of `Batches`, without packing."""

from collections.abc import Iterable, Sequence

import numpy as np

from unimm.config.check import ConfigError
from unimm.resize import fit
from unimm.sample import Pictures, Text
from unimm.stream.mixture import random_order, same_stream
from unimm.stream.sources import Item


def images_of(items: Iterable[Item], size: int) -> tuple[Pictures, int]:
    """All images of a source at one size, with the texts of those that are pairs, and how many rows were skipped."""
    found, texts, skipped = [], [], 0
    for item in items:
        made = item.read()
        if isinstance(made, str):
            skipped += 1
        else:
            found += [fit(image.content.array, size) for image in made.images]
            said = [part.text for part in made.parts if isinstance(part, Text)]
            texts += said if len(said) == len(made.images) == 1 else [""] * len(made.images)
    return Pictures(np.stack(found) if found else np.zeros((0, size, size, 3), np.uint8), tuple(texts)), skipped


class PixelBatches:
    """This rank's images of an endless stream of batches.

    `datasets` hold pictures of one size.
    Row b of batch n is place n * rows + b of the random order, whichever rank holds it.
    """

    def __init__(self, datasets: Sequence[Pictures], weights: Sequence[float], rows: int, seed: int,
                 rank: int = 0, world: int = 1):
        if rows % world:
            raise ConfigError(f"batch is {rows}, which {world} processes can't share evenly; "
                              f"make it a multiple of {world}")
        if not all(len(dataset) for dataset in datasets):
            raise ConfigError("a dataset of this stage has no images; check its source, or drop its Use")
        self.datasets, self.rows, self.step = datasets, rows, 0
        self.own = range(rows)[rank * rows // world : (rank + 1) * rows // world]
        self.plan = {"seed": seed, "rows": rows, "uses": [[len(d), w] for d, w in zip(datasets, weights, strict=True)]}
        self.order = random_order([len(dataset) for dataset in datasets], weights, seed)

    def next(self) -> Pictures:
        """rows / world of them."""
        places = [self.order[self.step * self.rows + b] for b in self.own]
        self.step += 1
        return Pictures(np.stack([self.datasets[use].pixels[row] for use, row in places]),
                        tuple(self.datasets[use].texts[row] for use, row in places))

    def state(self) -> dict:
        """Small JSON, the same on every rank."""
        return {**self.plan, "step": self.step}

    def restore(self, state: dict) -> None:
        """Go on from a state taken at any number of ranks. Raises ConfigError if the stream was another."""
        same_stream(self.plan, state)
        self.step = state["step"]
