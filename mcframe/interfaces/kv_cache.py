"""Keys and values of the entries that the base model has read, so that later entries are read alone."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys, values and LODs of one row of entries, for every layer, in buffers of a fixed size.

    Args:
        layers: Layers of the base model.
        heads: Attention heads.
        head_width: Width of a head.
        capacity: The most entries.
        like: A tensor of the same device and dtype.
    """

    def __init__(self, layers: int, heads: int, head_width: int, capacity: int, like: Tensor) -> None:
        self.length, self.capacity = 0, capacity
        self._keys = like.new_empty(layers, 1, heads, capacity, head_width)
        self._values = torch.empty_like(self._keys)
        self._lods = torch.zeros(1, capacity, dtype=torch.long, device=like.device)

    @property
    def lods(self) -> Tensor:
        """Levels of detail of the entries that were read [1, length]."""
        return self._lods[:, : self.length]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` entries."""
        assert 0 <= length <= self.length, f"cannot keep {length} of {self.length} entries"
        self.length = length

    def bytes_of(self, length: int) -> int:
        """Return the bytes of the keys and values of some entries."""
        return (self._keys[:, :, :, :1].nbytes + self._values[:, :, :, :1].nbytes) * length

    def append(self, layer: int, keys: Tensor, values: Tensor, lod: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store what a layer computed for new entries; return that of all entries.

        Args:
            layer: Index of the layer.
            keys: Rotated keys of the new entries [1, H, n, head_width].
            values: Their values [1, H, n, head_width].
            lod: Their levels of detail [1, n].

        Returns:
            Keys and values [1, H, length + n, head_width], and levels of detail [1, length + n].
        """
        first, last = self.length, self.length + lod.shape[1]
        assert last <= self.capacity, f"{last} entries exceed the capacity of {self.capacity}"
        self._keys[layer, :, :, first:last] = keys
        self._values[layer, :, :, first:last] = values
        self._lods[:, first:last] = lod
        return self._keys[layer, :, :, :last], self._values[layer, :, :, :last], self._lods[:, :last]

    def advance(self, count: int) -> None:
        """Count `count` entries as read, after every layer has stored them."""
        self.length += count
