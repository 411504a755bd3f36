"""Documents into rows of a fixed length, exactly repeatable, with a state of a few numbers.

    draw(i), draw(i + step), ...  -->  those that wait, by age  -->  row: the oldest, then what fills it best
"""

from collections.abc import Callable, Sized

LOOKAHEAD = 32
"""Documents a lane may choose from. The oldest opens the next row, so none waits longer than 32 rows, however long it
is and however well others fit. Sums of some of 32 lengths are dense: rows of 8,192 from text of 8 to 8,192 tokens are
99.99 % full, with 16 to choose from 99.8 %. Where nearly all are images of one size, no order could fill them:
7 x 1,026 = 7,182 of 8,192."""


class Lane:
    """One row of every batch, packed from the documents `first`, `first + step`, ... of an endless stream.

    draw     the document at an index, anything that has a length of 1 to `room`; None leaves it out and counts it
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
            self._fill()
            lengths = [*map(len, waiting.values())]
            if row and (lengths[0] > room or 2 * room <= sum(lengths)):
                break
            row.append(waiting.pop(next(iter(waiting))))
            room -= lengths[0]
        indices = list(waiting)
        return row + [waiting.pop(indices[n]) for n in best_subset(lengths, room)]

    def _fill(self) -> None:
        while len(self.waiting) < LOOKAHEAD:
            index, self.next = self.next, self.next + self.step
            document = self.draw(index)
            if document is None:
                self.dropped += 1
            else:
                self.waiting[index] = document


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
