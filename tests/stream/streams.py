"""Small datasets, layouts and stages for the tests of the stream."""

import numpy as np
from ten_systems import TEN

from unimm.config.data import Use
from unimm.config.stages import NextToken
from unimm.sample import Codes, Image, Sample, Text

LIQUID = TEN["liquid"].build()


class Named(list):
    """Samples with names, as `Shards` has them."""

    def key(self, index: int) -> str:
        return f"sample {index}"


def pair(number: int, length: int = 3) -> Sample:
    """A pair that says its number in its text and in the first code of its picture."""
    codes = np.full((3, 3), number % 40)
    return Sample((Image(Codes.of_grid(codes)), Text(f"{number:0{length}d}")))


def pairs(count: int, seed: int = 0) -> Named:
    """Pairs of numbers written with 3 to 20 digits."""
    lengths = np.random.default_rng(seed).integers(3, 21, count)
    return Named(pair(n, int(length)) for n, length in enumerate(lengths))


def stage(**changes) -> NextToken:
    values = {"mix": (Use(data="d", task="t2i"),), "steps": 1, "rows": 4, "seq_len": 64, "drop_context": 0.0, **changes}
    return NextToken(step_tokens=values.pop("rows") * values["seq_len"], **values)
