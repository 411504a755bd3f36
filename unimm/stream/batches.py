"""Packed batches for the language model, the same at any number of ranks.

    mixture[i] --layout.render--> Sequence --Lane: fullest row--> row of seq_len tokens --> Batch

A global batch has `rows` lanes. Lane b owns the mixture's indices b, b + rows, b + 2 rows, ... and packs
its own rows from them, so no lane depends on another and rank r simply holds rows / world neighbouring lanes.
The state of a lane is its next index and the few indices that wait for a row with room for them:

    draw(i), draw(i + step), ...  -->  those that wait, by age  -->  row: the oldest, then what fills it best

Batches of pixels for a stage that trains the image tokenizer: the contract of `Batches`, without packing.
"""

from collections.abc import Callable, Iterable, Sized
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from unimm.config.check import ConfigError
from unimm.config.stages import NextToken
from unimm.errors import UserError
from unimm.layout import Layout, LayoutError
from unimm.pictures import fit, from_png
from unimm.sample import Batch, Image, Pictures, Pixels, Sample, Sequence, Text
from unimm.stream.mixture import Mixture, random_order, same_stream
from unimm.stream.sources import Item
from unimm.stream.tasks import can_drop_context

GIVE_UP = 1000
"""So many samples in a row that are too long mean that none will fit."""
LOOKAHEAD = 32
"""Documents a lane may choose from. The oldest opens the next row, so none waits longer than 32 rows, however long it
is and however well others fit. Sums of some of 32 lengths are dense: rows of 8,192 from text of 8 to 8,192 tokens are
99.99 % full, with 16 to choose from 99.8 %. Where nearly all are images of one size, no order could fill them:
7 x 1,026 = 7,182 of 8,192."""


class TooLong(UserError):
    """A sample is longer than a row; the message names it, both lengths and the remedy."""


class Batches:
    """This rank's rows of an endless stream of batches.

    `gather` brings a value of every rank to every rank, in order of rank (`torch.distributed.all_gather_object`
    in a list); `state` calls it once, so with several ranks all of them must ask for the state together.
    Raises ConfigError where the rows can't be shared evenly.
    """

    def __init__(self, mixture: Mixture, layout: Layout, stage: NextToken, rank: int = 0, world: int = 1,
                 gather: Callable[[list], list[list]] = lambda own: [own]):
        if stage.rows % world:
            raise ConfigError(f"step_tokens is {stage.step_tokens} = {stage.rows} rows, which {world} processes can't "
                              f"share evenly; make it a multiple of {world} x {stage.seq_len}")
        self.mixture, self.layout, self.stage, self.gather = mixture, layout, stage, gather
        self.own = slice(rank * stage.rows // world, (rank + 1) * stage.rows // world)
        self.plan = {**mixture.facts(), "rows": stage.rows, "seq_len": stage.seq_len,
                     "drop_context": stage.drop_context}
        self.missed = 0
        self.lanes = [Lane(self._draw, b, stage.rows, stage.seq_len) for b in range(stage.rows)[self.own]]

    def next(self) -> Batch:
        """The next batch's rows: see `unimm.sample.Batch`, B = rows / world, T = seq_len."""
        rows = [lane.row() for lane in self.lanes]
        return make_batch(rows, self.stage.seq_len, self.layout.pad_id, self.layout.vocab.is_code)

    def state(self) -> dict:
        """Where every lane of every rank is, as small JSON."""
        own = [lane.state() for lane in self.lanes]
        return {**self.plan, "lanes": [lane for lanes in self.gather(own) for lane in lanes]}

    def restore(self, state: dict) -> None:
        """Go on from a state, which may have been taken at another number of ranks.

        Raises ConfigError where the stream of that state was another one.
        """
        same_stream(self.plan, state)
        for lane, saved in zip(self.lanes, state["lanes"][self.own], strict=True):
            lane.restore(saved)

    def _draw(self, index: int) -> Sequence | None:
        """The document at an index of the mixture; None if it is too long and such are dropped."""
        key, sample = self.mixture[index]
        if self.stage.reconstruction:  # the pictures beside their codes, for a tokenizer that learns in the step
            sample = Sample(tuple(replace(p, content=Pixels(from_png(p.seen))) if isinstance(p, Image) else p
                                  for p in sample.parts))
        unconditional = can_drop_context(sample) and self.mixture.chance(index) < self.stage.drop_context
        try:
            document = self.layout.render(sample, unconditional)
        except LayoutError as error:
            raise LayoutError(f"{key}: {error}") from None
        if len(document) <= self.stage.seq_len:
            self.missed = 0
            return document
        if self.stage.too_long == "refuse":
            raise TooLong(f"{key} is {len(document)} tokens long, a row is {self.stage.seq_len}; "
                          f"raise seq_len, or set too_long to 'drop' to leave such samples out and count them")
        self.missed += 1
        if self.missed == GIVE_UP:
            raise TooLong(f"{GIVE_UP} samples in a row were longer than {self.stage.seq_len} tokens, the last of them "
                          f"{key}; raise seq_len")
        return None


def make_batch(rows: list[list[Sequence]], seq_len: int, pad: int, is_code: np.ndarray) -> Batch:
    """Lay out documents row by row; `is_code` bool (vocabulary,) says which ids are image positions."""
    shape = (len(rows), seq_len)
    ids, targets = np.full(shape, pad, np.int64), np.full(shape, pad, np.int64)
    position, document = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    learn, image = np.zeros(shape, bool), np.zeros(shape, bool)
    slots = []
    for r, row in enumerate(rows):
        start = 0
        for number, sequence in enumerate(row, 1):
            end = start + len(sequence)
            last = end - 1  # its target would be the next document's first id: padding, never learned
            visual = is_code[sequence.ids]
            for slot in sequence.slots:
                visual[slot.start : slot.start + slot.length] = True
                slots.append((r, replace(slot, start=start + slot.start)))
            ids[r, start:end] = sequence.ids
            targets[r, start:last], learn[r, start:last] = sequence.ids[1:], sequence.learn[1:]
            image[r, start:last] = visual[1:]
            position[r, start:end], document[r, start:end] = np.arange(len(sequence)), number
            start = end
    return Batch(ids, targets, learn, position, document, image, tuple(slots), sum(map(len, rows)),
                 tuple(tuple(map(len, row)) for row in rows))


class Lane:
    """One row of every batch, packed from the documents `first`, `first + step`, ... of an endless stream.

    draw     the document at an index, anything that has a length of 1 to `room`; None leaves it out
    dropped  how many were left out so far
    waiting  documents drawn and not given out yet by index, the oldest first
    """

    def __init__(self, draw: Callable[[int], Sized | None], first: int, step: int, room: int):
        self.draw, self.next, self.step, self.room = draw, first, step, room
        self.dropped = 0
        self.waiting: dict[int, Sized] = {}

    def state(self) -> list[int]:
        """What `restore` needs: the indices, not what they are drawn as."""
        return [self.next, self.dropped, *self.waiting]

    def restore(self, state: list[int]) -> None:
        self.next, self.dropped, *waiting = state
        self.waiting = {index: self.draw(index) for index in waiting}

    def row(self) -> list:
        """The documents of the next row: the oldest first, then those of the waiting that fill the rest best.

        Choice is widest when about half of what waits goes in, so a long row takes more by age first.
        """
        row, room, waiting = [], self.room, self.waiting
        while True:
            while len(waiting) < LOOKAHEAD:
                index, self.next = self.next, self.next + self.step
                if (document := self.draw(index)) is None:
                    self.dropped += 1
                else:
                    waiting[index] = document
            lengths = [*map(len, waiting.values())]
            if row and (lengths[0] > room or 2 * room <= sum(lengths)):
                break
            row.append(waiting.pop(next(iter(waiting))))
            room -= lengths[0]
        indices = list(waiting)
        return row + [waiting.pop(indices[n]) for n in best_subset(lengths, room)]


def best_subset(lengths: list[int], room: int) -> list[int]:
    """Which of `lengths` together come closest to `room` from below, the earlier ones where sums are equal.

    Exact: bit s of `reach[n]` says whether some of the first n lengths add up to s.
    """
    reach, sums, kept = [1], 1, (2 << room) - 1
    for length in lengths:
        if length <= room:
            sums |= sums << length & kept
        reach.append(sums)
        if sums >> room:
            break
    total, chosen = sums.bit_length() - 1, []
    for n in reversed(range(len(reach) - 1)):
        if not reach[n] >> total & 1:
            chosen.append(n)
            total -= lengths[n]
    return chosen[::-1]


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

    def __init__(self, datasets: Many[Pictures], weights: Many[float], rows: int, seed: int,
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
