"""Hashes of all fixed-length strings of a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def string_hashes(text: str, length: int) -> Hashes:
    """Return a 64-bit hash of each string of `length` characters in `text`, in order.

    Args:
        text: any text; lone surrogates are characters like others.
        length: a power of two.

    Returns:
        uint64 [max(0, len(text) - length + 1)].
    """
    if len(text) < length:
        return np.empty(0, np.uint64)
    hashes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    done = 1
    while done < length:  # a string's hash is made from those of its halves
        hashes = hashes[:-done] * np.uint64(0x9E3779B97F4A7C15) + hashes[done:]
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0xD6E8FEB86659FD93)
        hashes ^= hashes >> np.uint64(29)
        done *= 2
    return hashes
