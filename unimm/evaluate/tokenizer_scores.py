"""What is measured of an image tokenizer, whatever it is and whatever its pictures show.

    pictures --there and back--> likeness, use of codes, the judge's share, Frechet distance to the originals
    words ----there and back--> share that can still be read, by size of the letters
    labelled pictures --vectors--> share of labels that a linear map reads
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import words_world
from unimm.config.model import PretrainedVision
from unimm.evaluate.scores import Scores, Shown
from unimm.images.base import ImageTokenizer
from unimm.images.measure import AT_ONCE, RandomFeatures, frechet, measure, pooled_vectors, probe
from unimm.images.prepare import prepare
from unimm.images.tokenizer import to_codes, to_pixels, to_tensor
from unimm.pictures import resized
from unimm.system import FEATURES_FOLDER, System


class Labelled(NamedTuple):
    """Pictures with the labels of each, by what they are of; a map is fitted to `known` and asked about `asked`."""

    known: list[np.ndarray]
    asked: list[np.ndarray]
    labels: dict[str, tuple[list[str], list[str]]]


class Subject(NamedTuple):
    """A tokenizer, the sizes of its layout in codes, and the folder of a vision encoder to compare pictures by, where
    there is one."""

    tokenizer: ImageTokenizer
    grids: Sequence[tuple[int, int]] = ()
    features: Path | None = None

    @classmethod
    def of(cls, system: System, features: Path | None = None) -> "Subject":
        """A run's; compared by its own features where no others are given."""
        own = system.folder / FEATURES_FOLDER
        return cls(system.tokenizer, system.recipe.layout.sizes, features or (own if own.is_dir() else None))

    def prepared(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        return [prepare(self.tokenizer.config, picture, self.grids) for picture in pictures]


@torch.no_grad()
def add_tokenizer(scores: Scores, subject: Subject, key: str, pictures: list[np.ndarray],
                  judge: Callable[[list[np.ndarray]], list[tuple[bool, str]]],
                  labelled: Labelled | None = None) -> None:
    """Everything about uint8 (H, W, 3) pictures under `tokenizer.`: `measure`'s values, `KEY`, the share of
    reconstructions that `judge` finds right (it gives each one's (ok, why)), rfid, the share of rendered words
    that is read in what came back, by size and of all, probe."""
    pictures = subject.prepared(pictures)
    found = measure(subject.tokenizer, pictures)
    scores.reconstructions = [Shown("reconstruction", "", ok, got, given=picture, why=why)
                              for picture, got, (ok, why) in zip(pictures, found.back, judge(found.back))]
    scores.add_share(f"tokenizer.{key}", scores.reconstructions)
    scores.code_counts = found.counts
    for name, value in found.values.items():
        if math.isfinite(value):  # PSNR is infinite where nothing is lost
            scores.add(f"tokenizer.{name}", value, len(pictures))
    for name, network in _networks(subject.features).items():
        seen = [np.concatenate([network(some[n:n + AT_ONCE]).double().numpy() for n in range(0, len(some), AT_ONCE)])
                for some in (pictures, found.back)]
        scores.add(f"tokenizer.rfid.{name}", frechet(*seen), len(pictures))
    right, side = {}, subject.tokenizer.config.image
    for size in words_world.SIZES:
        given = subject.prepared([words_world.render(word, size, side) for word in words_world.WORDS])
        back = to_pixels(subject.tokenizer, to_codes(subject.tokenizer, given))
        read = words_world.read([resized(picture, (side, side)) for picture in back], size)
        right[size] = float(np.mean([a == b for a, b in zip(read, words_world.WORDS)]))
        scores.add(f"tokenizer.words.{size}", right[size], len(read))
    scores.add("tokenizer.words.all", float(np.mean(list(right.values()))), len(right) * len(words_world.WORDS))
    if labelled:
        known, asked = (pooled_vectors(subject.tokenizer, subject.prepared(some)) for some in labelled[:2])
        for name, (names, right) in labelled.labels.items():
            scores.add(f"tokenizer.probe.{name}", probe(known, names, asked, right), len(right))


def _networks(folder: Path | None) -> dict[str, Callable[[list[np.ndarray]], Tensor]]:
    """What Frechet distances are taken between: features of a network that no run trains, and of `folder`'s."""
    plain = RandomFeatures()
    found = {"random": lambda some: plain(to_tensor(some))}
    if folder:
        from unimm.published import vision

        network = vision(PretrainedVision(path=str(folder)))
        side = network.config.image_size
        found["features"] = lambda some: network(
            to_tensor([resized(picture, (side, side)) for picture in some])).last_hidden_state.mean(1)
    return found
