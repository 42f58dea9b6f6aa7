"""Tests of whether a series changed, for values that are correlated with their neighbours.

A test that takes such values as independent finds changes everywhere. Each test here uses the effective number of
independent values instead. Change-point libraries such as ruptures segment a series but do not test it: on the
autocorrelated noise of the tests, a usual penalty finds a change in nearly every series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special  # scipy.stats would take a second of every review

from mcframe.review.series import Values

MIN_STRETCH = 5
MIN_VALUES = 12
_MAX_POINTS = 240
_MAX_AUTOCORRELATION = 0.95
_REMOVED_STRETCHES = 2
_MARGIN = 1.3


@dataclass(frozen=True)
class Bounds:
    """An estimate with its interval; `size` is the effective number of independent values."""

    value: float
    low: float
    high: float
    size: float


@dataclass(frozen=True)
class Stretch:
    """Points [begin, end) whose mean differs from that of the others; `score` is the difference in standard errors."""

    begin: int
    end: int
    inside: float
    outside: float
    score: float


def effective_size(residuals: Values) -> float:
    """Return the effective number of independent values, between 1 and n.

    n over the sum of autocorrelations, summed in pairs until a pair is no longer positive (Geyer, Statistical Science
    1992).
    """
    n = len(residuals)
    centred = residuals - residuals.mean()
    power = np.correlate(centred, centred, "full")[n - 1 :]
    if n < 3 or power[0] <= 1e-12 * max(1.0, float(np.mean(residuals**2))) * n:
        return float(n)
    pairs = (power / power[0])[: n - n % 2].reshape(-1, 2).sum(axis=1)
    positive = pairs[: int(np.argmax(pairs <= 0))] if bool((pairs <= 0).any()) else pairs
    return float(n / max(1.0, 2.0 * positive.sum() - 1.0))


def mean_bounds(values: Values, level: float) -> Bounds | None:
    """Return the mean with its interval at this level; None for an effective size below three."""
    size = effective_size(values) if len(values) >= 3 else 0.0
    if size < 3:
        return None
    return _bounds(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(size), size, 1, level)


def rise_bounds(values: Values, level: float) -> Bounds | None:
    """Return how much a straight line through the values rises from first to last, with its interval.

    None for fewer than `MIN_VALUES` values, or residuals of an effective size below four.
    """
    n = len(values)
    if n < MIN_VALUES:
        return None
    x = np.linspace(-0.5, 0.5, n)
    # Least squares about the means: np.polyfit would return a slope of rounding errors for constant values.
    centred, squares = values - values.mean(), float(x @ x)
    slope = float(x @ centred) / squares
    residuals = centred - slope * x
    size = effective_size(residuals)
    error = math.sqrt(float(residuals @ residuals) / (n - 2) / squares * n / size)
    return None if size < 4 else _bounds(slope, error, size, 2, level)


def _bounds(value: float, error: float, size: float, parameters: int, level: float) -> Bounds:
    half = float(special.stdtrit(max(1, round(size) - parameters), 0.5 + level / 2)) * error
    return Bounds(value, value - half, value + half, size)


def find_stretch(values: Values, alpha: float) -> Stretch | None:
    """Return the stretch of at least `MIN_STRETCH` points that differs most from the others, None if none differs.

    Every stretch is compared with all points outside it, which finds steps, dips and bumps alike (circular binary
    segmentation: Olshen and others, Biostatistics 2004). The noise is that of an autoregression of the points without
    this stretch and the next clearest. Outliers are replaced by the median of their neighbours first.

    Args:
        values: the series.
        alpha: probability of finding a stretch in a series without a change, by Bonferroni over all stretches.
    """
    if len(values) < MIN_VALUES:
        return None
    stride = math.ceil(len(values) / _MAX_POINTS)
    n = len(values) // stride
    points = without_outliers(values)[: n * stride].reshape(n, stride).mean(axis=1)
    if n < MIN_VALUES:
        return None
    begin, end = np.triu_indices(n + 1, MIN_STRETCH)
    inner = end - begin
    allowed = n - inner >= MIN_STRETCH
    begin, end, inner = begin[allowed], end[allowed], inner[allowed]
    weights = np.sqrt(1 / inner + 1 / (n - inner))
    residuals = points - points.mean()
    found: list[tuple[int, float]] = []
    # A second stretch is removed as well: in the noise, two dips would hide each other.
    for _ in range(_REMOVED_STRETCHES):
        sums = np.concatenate([[0.0], np.cumsum(residuals)])
        inside = sums[end] - sums[begin]
        difference = inside / inner + inside / (n - inner)  # the residuals of all points sum to 0
        most = int(np.argmax(np.abs(difference) / weights))
        found.append((most, float(difference[most])))
        residuals[begin[most] : end[most]] -= difference[most]
        residuals -= residuals.mean()
    best, level = found[0]
    scale, size = _noise(residuals)
    tiny = 1e-9 * max(1e-12, abs(float(points.mean())))
    score = level / (max(scale, tiny) * float(weights[best]))
    if abs(score) <= special.stdtrit(max(8, round(size / 2)), 1 - alpha / (2 * len(inner))):
        return None
    first, last = int(begin[best]) * stride, int(end[best]) * stride
    last = len(values) if last == n * stride else last
    others = np.concatenate([values[:first], values[last:]])
    return Stretch(first, last, float(values[first:last].mean()), float(others.mean()), score)


def without_outliers(values: Values, deviations: float = 5.0) -> Values:
    """Return the values with those far from the median of five neighbours replaced by it. Steps are preserved."""
    middle = ndimage.median_filter(values, 5, mode="nearest")
    scale = _robust_deviation(values - middle)
    return np.where(np.abs(values - middle) > deviations * scale, middle, values)


def outliers(values: Values, alpha: float, width: int = 11) -> Values:
    """Return how far each value is above the median of its neighbours, 0 where that is within the noise.

    The limit is a height that normal noise exceeds anywhere with probability `alpha` at most, and at least eight robust
    deviations, because losses are not normal.
    """
    if len(values) < MIN_VALUES:
        return np.zeros_like(values)
    above = values - ndimage.median_filter(values, width, mode="mirror")
    limit = max(8.0, special.stdtrit(200, 1 - alpha / len(values))) * _robust_deviation(above)
    return np.where(above > limit, above, 0.0)


def _robust_deviation(values: Values) -> float:
    """Return the median absolute deviation, scaled to the standard deviation of normal values."""
    return float(np.median(np.abs(values - np.median(values))) / special.ndtri(0.75))


def _noise(residuals: Values) -> tuple[float, float]:
    """Return (standard deviation of a mean of n points times sqrt(n), effective number of points)."""
    n = len(residuals)
    variance = float((residuals**2).mean()) * n / (n - 3)
    if variance == 0.0:
        return 0.0, float(n)
    rho = float((residuals[1:] * residuals[:-1]).mean() / (residuals**2).mean())
    # Removing the stretches lowers the correlation of the residuals, so the upper end of its interval is taken.
    rho = min(_MAX_AUTOCORRELATION, max(0.0, rho) + _MARGIN / math.sqrt(n))
    return math.sqrt(variance * (1 + rho) / (1 - rho)), n * (1 - rho) / (1 + rho)
