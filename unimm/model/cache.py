"""Keys and values of what was read, in memory taken once: nothing is copied as the sequence grows."""

import torch


class KVCache:
    """Speaks the part of transformers' Cache that decoder layers use. Positions [0, `length`) are filled."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_, **__):
        """Store (B, heads, t, D) behind what is there; return everything so far (views, no copies)."""
        if layer not in self._layers:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        keys, values = self._layers[layer]
        end = self.length + key.shape[2]
        keys[:, :, self.length:end], values[:, :, self.length:end] = key, value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, steps: int) -> None:
        """Call once after every forward: all layers have stored `steps` positions."""
        self.length += steps

    def get_seq_length(self, *_) -> int:
        return self.length
