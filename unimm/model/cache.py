"""Keys and values of what rows have read, each row from 0 to its own length, in memory taken once.

    n rows read now   t positions read now   G key heads   D head width
"""

import numpy as np
import torch


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A host array on the device, out of pinned memory, which a GPU reads while it computes."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class RowCache:
    """A key's index is its position. Speaks the part of transformers' Cache that decoder layers use.

    A row's keys behind its own length are whatever was there: no query sees them before they are overwritten. So
    rows may be read padded on the right.

    Between `at` and the next one these say what is read, for attention and positions:

        first, start   the first of the rows, and where each begins to read: on the host, int64 (n,)
        aligned        whether all begin at one place
        position       int64 (n, t) on the device
        end            one behind the last position of any row
        layers         by layer, keys and values (rows, G, capacity, D)
    """

    def __init__(self, rows: int, capacity: int, device: torch.device):
        self.rows, self.capacity, self.device = rows, capacity, device
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def at(self, first: int, start: np.ndarray, t: int) -> None:
        """The next forward reads t positions of rows [first, first + n), from `start` int64 (n,) on."""
        self.first, self.start, self.t = first, start, t
        first_start = int(start[0])
        self.low, high = (first_start, first_start) if len(start) == 1 else (int(start.min()), int(start.max()))
        self.end, self.aligned = high + t, high == self.low
        self.position = sent(start[:, None] + (0 if t == 1 else np.arange(t)), self.device)
        self._masks: dict[int | None, tuple[int, torch.Tensor | None]] = {}
        if not self.aligned:
            self._where = torch.arange(first, first + len(start), device=self.device)[:, None]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_, **__):
        """Store (n, G, t, D); return all that these rows hold up to `end`, (n, G, end, D), as views."""
        if layer not in self.layers:
            self.layers[layer] = tuple(x.new_zeros(self.rows, x.shape[1], self.capacity, x.shape[3])
                                       for x in (key, value))
        rows = slice(self.first, self.first + len(key))
        held = self.layers[layer]
        for kept, new in zip(held, (key, value)):
            if self.aligned:
                kept[rows, :, self.low:self.end] = new
            else:
                kept[self._where, :, self.position] = new.transpose(1, 2)
        return tuple(kept[rows, :, :self.end] for kept in held)

    def seen(self, window: int | None = None) -> tuple[int, torch.Tensor | None]:
        """The first position that any query sees, and which from there on each sees: bool (n or 1, 1, t, end - it).

        None in place of the mask where every query sees all of them. `window` counts the keys that a query sees.
        """
        if window not in self._masks:
            low = 0 if window is None else max(0, self.low - window + 1)
            mask = None
            if not self.aligned or self.t > 1:
                position = (self.position[:1] if self.aligned else self.position)[:, None, :, None]
                keys = torch.arange(low, self.end, device=self.device)
                mask = keys <= position
                if window is not None:
                    mask &= keys > position - window
            self._masks[window] = low, mask
        return self._masks[window]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row to another."""
        for held in self.layers.values():
            for kept in held:
                kept[target, :, :length] = kept[source, :, :length]

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for so many rows and positions; what is held moves along, into other memory.

        What grows again grows by a quarter at least, so that it does not at every step.
        """
        if rows <= self.rows and capacity <= self.capacity:
            return
        rows, capacity = (old if new <= old else max(new, old * 5 // 4)
                          for new, old in ((rows, self.rows), (capacity, self.capacity)))
        for layer, held in self.layers.items():
            more = tuple(kept.new_zeros(rows, kept.shape[1], capacity, kept.shape[3]) for kept in held)
            for kept, new in zip(held, more):
                new[:self.rows, :, :self.capacity] = kept
            self.layers[layer] = more
        self.rows, self.capacity = rows, capacity

    def get_seq_length(self, *_) -> int:
        return self.end - self.t
