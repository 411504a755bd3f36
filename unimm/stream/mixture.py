"""Which sample comes when: a pure function from a global index, so that any rank can ask for any place.

    dataset --shuffle(seed), anew each epoch--> endless --mix by weight--> --shuffle in windows--> order[i]

All of it is grain's `MapDataset`; nothing here has state. The window shuffle is not cosmetic: mixing by
weight alternates with a short period, and a packing lane that takes every B-th index would see one use alone.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.data import Use
from unimm.sample import Sample
from unimm.stream.shards import Shards
from unimm.stream.tasks import as_task

WINDOW = 1024
"""Indices within which uses trade places. Over any whole window the weights hold to one sample."""


class Place(NamedTuple):
    """Row `row` of the dataset of use number `use`."""

    use: int
    row: int


def random_order(lengths: Sequence[int], weights: Sequence[float], seed: int):
    """An endless grain MapDataset of `Place`: order[i] for any i >= 0.

    Every use runs through its rows epoch by epoch, each row once an epoch, in proportion to its weight.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # grain warns that jax is absent; it isn't needed
    import grain
    from grain.experimental import WindowShuffleMapDataset

    # Hashed: grain adds the epoch to the seed, so neighbouring seeds would repeat each other's epochs.
    window_seed, *seeds = (np.random.SeedSequence(seed).generate_state(1 + len(lengths)) >> 1).tolist()
    uses = [grain.MapDataset.source(range(length)).map(partial(Place, use)).shuffle(use_seed).repeat()
            for use, (length, use_seed) in enumerate(zip(lengths, seeds, strict=True))]
    if len(uses) == 1:
        return uses[0]
    return WindowShuffleMapDataset(grain.MapDataset.mix(uses, list(weights)), window_size=WINDOW, seed=window_seed)


class Mixture:
    """The samples of a stage: mixture[i] is what its tasks make of the i-th place of the random order."""

    def __init__(self, datasets: dict[str, Shards], uses: tuple[Use, ...], seed: int):
        for use in uses:
            if not len(datasets[use.data]):
                raise ConfigError(f"data {use.data!r} has no samples; check what its encode skipped, or drop its Use")
        self.uses, self.seed = uses, seed
        self._datasets = [datasets[use.data] for use in uses]
        self._order = random_order([len(d) for d in self._datasets], [use.weight for use in uses], seed)

    def __getitem__(self, index: int) -> tuple[str, Sample]:
        """The sample and, before it, its name."""
        use, row = self._order[index]
        dataset = self._datasets[use]
        key = dataset.key(row)
        return key, as_task(self.uses[use].task, key, dataset[row])

    def chance(self, index: int) -> float:
        """A number in [0, 1) that belongs to this index, the same in every run and on every rank."""
        return float(np.random.default_rng((self.seed, index)).random())

    def facts(self) -> dict:
        """What the order depends on, for a checkpoint to compare."""
        uses = [[use.data, use.task, use.weight, len(d)] for use, d in zip(self.uses, self._datasets, strict=True)]
        return {"seed": self.seed, "uses": uses}


def same_stream(plan: dict, state: dict) -> None:
    """Refuse a state that was saved by a stream of another plan: ConfigError with what changed and the remedy."""
    if changed := [name for name, value in plan.items() if state.get(name) != value]:
        told = "; ".join(f"{name} was {state.get(name)}, is {plan[name]}" for name in changed)
        raise ConfigError(f"the checkpoint's data stream was another: {told}; "
                          "go on with the settings it was saved with, or start the stage anew")
