"""One metric over a run in bounded memory: neighbours are joined as points grow in number."""

from __future__ import annotations

import math
from array import array

import numpy as np
from numpy.typing import NDArray

CAPACITY = 1024
"""Largest number of points of a series; even, because pairs are joined."""

Values = NDArray[np.float64]


class Series:
    """Means, lows and highs of a metric over stretches of a run with equal numbers of values.

    Up to `CAPACITY` values are kept unchanged. With more, pairs of neighbours are joined, so that a run of any length
    takes the same memory. Spikes remain in the highs.
    """

    def __init__(self) -> None:
        self.first, self.last = math.nan, math.nan
        self.count = 0
        self.not_finite = 0
        self._stride = 1
        self._tokens, self._steps = array("d"), array("d")
        self._means, self._lows, self._highs = array("d"), array("d"), array("d")
        self._open: list[tuple[float, float, float]] = []

    def add(self, tokens: float, step: float, value: float | None) -> None:
        """Add a value. None and values that are not finite are counted only."""
        if value is None or not math.isfinite(value):
            self.not_finite += 1
            return
        self.first = value if self.count == 0 else self.first
        self.last = value
        self.count += 1
        self._open.append((tokens, step, value))
        if len(self._open) >= self._stride:
            self._close()

    def _close(self) -> None:
        values = [value for _, _, value in self._open]
        self._tokens.append(self._open[-1][0])
        self._steps.append(self._open[-1][1])
        self._means.append(math.fsum(values) / len(values))
        self._lows.append(min(values))
        self._highs.append(max(values))
        self._open = []
        if len(self._means) >= CAPACITY:
            self._join()

    def _join(self) -> None:
        self._stride *= 2
        self._tokens, self._steps = self._tokens[1::2], self._steps[1::2]
        lows, highs = self._lows, self._highs
        self._lows = array("d", map(min, lows[::2], lows[1::2]))
        self._highs = array("d", map(max, highs[::2], highs[1::2]))
        self._means = array("d", ((a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)))

    def __len__(self) -> int:
        """Return the number of complete points."""
        return len(self._means)

    @property
    def stride(self) -> int:
        """Number of values of a point."""
        return self._stride

    @property
    def tokens(self) -> Values:
        """[points] the last token count of each point."""
        return np.array(self._tokens)

    @property
    def steps(self) -> Values:
        """[points] the last optimizer step of each point."""
        return np.array(self._steps)

    @property
    def means(self) -> Values:
        """[points] mean values."""
        return np.array(self._means)

    @property
    def highs(self) -> Values:
        """[points] highest values."""
        return np.array(self._highs)

    @property
    def lows(self) -> Values:
        """[points] lowest values."""
        return np.array(self._lows)

    def late(self, fraction: float) -> Values:
        """Return the means over the last fraction of the run, by tokens."""
        tokens = self.tokens
        if not len(tokens):
            return tokens
        values: Values = self.means[tokens > tokens[-1] - fraction * (tokens[-1] - tokens[0])]
        return values
