"""Means over seeds with Student's t interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

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
    n = len(values)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Estimate(fmean(values), half, n)
