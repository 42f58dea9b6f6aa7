"""Means over seeds with Student's t interval. Few seeds make it wide, which is what they tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; the interval is mean ± half. half is None for a single seed, which says nothing of it."""

    mean: float
    half: float | None
    n: int

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, with its interval at `LEVEL`."""
    n = len(values)
    half = t_quantile(0.5 + LEVEL / 2, n - 1) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Estimate(fmean(values), half, n)


def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t with this many degrees of freedom."""
    return float(stats.t.ppf(probability, freedom))
