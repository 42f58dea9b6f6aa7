"""Means over seeds with Student's t interval. Few seeds make it wide, which is what they tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev

import mpmath

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


@lru_cache
def t_quantile(share: float, freedom: int) -> float:
    """The value that Student's t with this many degrees of freedom stays below with probability `share` (above 1/2)."""

    def excess(t: mpmath.mpf) -> mpmath.mpf:
        tail = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) / 2
        return 1 - tail - share

    # Halving is slow and sure; faster methods lose their way in the heavy tails of few degrees of freedom.
    return float(mpmath.findroot(excess, (0.0, 1e4), solver="bisect", tol=1e-20, maxsteps=100))
