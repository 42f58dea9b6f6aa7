"""Means over targets with 95 % intervals over documents: targets of one document are correlated.

Percentiles of a bootstrap are too narrow with few documents. benchmarks/interval_coverage.py compares the methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcframe.hookspecs import Interval

Array = NDArray[np.float64]
Weights = Mapping[str, float]
"""A linear combination of means: name -> factor."""

LEVEL = 0.95
FEWEST_DOCUMENTS = 8
"""Least documents for a conclusion. Below, a few documents decide even whether an interval contains 0."""

_FEWEST_EFFECTIVE = 1.5
"""Least effective number of documents for an interval: two, of which one may be four times as long."""

_SKEWNESS_FACTOR, _MOST_SKEWNESS = 2.25, 0.4
"""Factor on the skewness of a mean, since few documents show less than their distribution has, and a limit to it."""

_ROUNDING = 1e-12
"""Relative width of an interval whose documents all have one value: more than the rounding of sums."""

_SYMMETRIC = 1e-6
"""Skewness of a mean below which Hall's transformation is the identity but for rounding."""


class DocumentMeans:
    """Means of several values of the same targets, and intervals from the differences between documents.

    Student's t for documents of unequal sizes: the variance is unbiased if documents vary alike (HC2), and the
    degrees of freedom are those of the effective number of documents (Kish, 1965). On the side of the long tail of a
    skewed distribution a bound moves outwards, to that of Hall's transformation (1992).

    Args:
        values: Name -> [targets], all finite.
        documents: [targets] the document of each target.

    Attributes:
        targets, documents: Their numbers.
        effective: The number of equally long documents that would be as informative.
        point: Name -> mean over targets.
    """

    def __init__(self, values: Mapping[str, Tensor], documents: Tensor) -> None:
        from scipy.special import stdtrit  # imported late: it takes a third of a second of every start

        _, owner = torch.unique(documents, return_inverse=True)
        self.targets = int(owner.numel())
        self.documents = int(owner.max()) + 1 if self.targets else 0
        table = torch.stack([*(v.double() for v in values.values()), torch.ones(self.targets, dtype=torch.float64)])
        if not bool(table.isfinite().all()):
            raise ValueError("expected finite values: conditions must be compared on the same targets")
        sums = torch.zeros(self.documents, len(values) + 1, dtype=torch.float64).index_add(0, owner, table.T).numpy()
        fractions = sums / max(1, self.targets)
        means = fractions.sum(axis=0)
        self.point = {name: float(mean) if self.targets else np.nan for name, mean in zip(values, means, strict=False)}
        self._part = fractions[:, -1]
        # A document's part of each mean, minus what it would be if its own mean were the mean of all.
        residuals = fractions - self._part[:, None] * means
        self._residuals: dict[str, Array] = dict(zip(values, residuals.T, strict=False))
        self.effective = 1 / float(self._part @ self._part) if self.targets else 0.0
        self._quantile = (
            float(stdtrit(self.effective - 1, (1 + LEVEL) / 2)) if self.effective >= _FEWEST_EFFECTIVE else np.nan
        )

    def mean(self, name: str) -> Interval:
        """Return the mean of one value over targets."""
        return self._interval({name: 1})

    def difference(self, name: str, other: str) -> Interval:
        """Return the mean of one value minus that of another, paired by target."""
        return self._interval({name: 1, other: -1})

    def ratio(self, above: Weights, below: Weights) -> Interval:
        """Return the ratio of two combinations of means with Fieller's interval.

        A ratio x is in the interval if that of `above - x * below` contains 0. The bounds are NaN if that of `below`
        does.
        """
        from scipy.optimize import brentq

        a, b, one, other = self._value(above), self._value(below), self._residual(above), self._residual(below)
        sign = 1.0 if b > 0 else -1.0

        def beyond(x: float, side: int) -> float:
            """Return by how much one bound of the difference is beyond 0, for x on that side of the ratio."""
            residual = (one - x * other) * sign
            return side * (a - x * b) * sign - self._reach(residual, side) * self._error(residual)

        if not abs(b) > self._reach(other * sign, 1) * self._error(other):
            return Interval(a / b if b else np.nan, np.nan, np.nan)
        bounds = []
        for side in (1, -1):
            if beyond(a / b, side) >= 0:  # the same ratio in every document, but for rounding
                bounds.append(a / b)
                continue
            step = self._error(one - a / b * other) / abs(b) or abs(a / b) * _ROUNDING
            while beyond(a / b - side * step, side) < 0:  # ends, since the interval of `below` does not contain 0
                step *= 2
            found = brentq(lambda distance, side: beyond(a / b - side * distance, side), 0, step, args=(side,))
            bounds.append(a / b - side * float(found))
        return Interval(a / b, bounds[0], bounds[1])

    def _interval(self, weights: Weights) -> Interval:
        """Return a combination of means. The bounds are NaN if one document holds nearly all targets."""
        value, residual = self._value(weights), self._residual(weights)
        error = self._error(residual)
        return Interval(value, value - self._reach(residual, 1) * error, value + self._reach(residual, -1) * error)

    def _reach(self, residual: Array, side: int) -> float:
        """Return the distance of the lower (side 1) or upper (-1) bound in standard errors."""
        spread = float((residual**2).sum()) ** 1.5
        skewness = side * _SKEWNESS_FACTOR * float((residual**3).sum()) / spread if spread else 0.0
        skewness = max(-_MOST_SKEWNESS, min(_MOST_SKEWNESS, skewness))
        t = self._quantile
        if abs(skewness) < _SYMMETRIC or np.isnan(t):
            return t
        hall = 3 / skewness * (float(np.cbrt(1 + skewness * (t - skewness / 6))) - 1)
        return max(t, hall)

    def _value(self, weights: Weights) -> float:
        return sum(factor * self.point[name] for name, factor in weights.items())

    def _residual(self, weights: Weights) -> Array:
        return np.asarray(sum(factor * self._residuals[name] for name, factor in weights.items()))

    def _error(self, residual: Array) -> float:
        """Return the standard error of a combination of means from its residuals [documents]."""
        if np.isnan(self._quantile):
            return np.nan
        return math.sqrt(float((residual**2 / (1 - self._part)).sum()))
