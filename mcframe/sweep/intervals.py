"""Means over seeds with Student's t interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with the interval mean ± half; half is None for a single seed."""

    mean: float
    half: float | None
    n: int

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value a seed, with its interval at `LEVEL`."""
    n, half = len(values), None
    if n > 1:
        from scipy.special import stdtrit  # imported late: it takes a third of a second of every start

        half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(fmean(values), half, n)
