"""Tests that say whether a series changed, or is only noisy. All allow for values that resemble their neighbours.

The values of a run are not independent draws: a slow minute makes the next one slow. A test that counts them as
independent sees changes everywhere. Each test here reckons with the number of independent values that would say as
much as these do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mcframe.review.series import Values
from mcframe.sweep.intervals import t_quantile

MIN_STRETCH = 5
MIN_VALUES = 12
_MOST = 240
_MAD = 1.4826
_MOST_ALIKE = 0.95
_TAKEN_OUT = 2
_DOUBT = 1.3


@dataclass(frozen=True)
class Bounds:
    """An estimate and its interval; size is the number of independent values that it is worth."""

    value: float
    low: float
    high: float
    size: float


@dataclass(frozen=True)
class Stretch:
    """Points [begin, end) whose mean differs from that of the others; score is the difference in standard errors."""

    begin: int
    end: int
    inside: float
    outside: float
    score: float


def effective_size(residuals: Values) -> float:
    """How many independent values say as much about their mean as these do.

    n over the sum of autocorrelations, summed in pairs until a pair is no longer positive (Geyer, Statistical Science
    1992). Between 1 and n.
    """
    n = len(residuals)
    centred = residuals - residuals.mean()
    power = np.correlate(centred, centred, "full")[n - 1 :]
    if n < 3 or power[0] <= 1e-12 * max(1.0, float(np.mean(residuals**2))) * n:
        return float(n)
    rho = power / power[0]
    pairs = rho[: n - n % 2].reshape(-1, 2).sum(axis=1)
    positive = pairs[: int(np.argmax(pairs <= 0))] if bool((pairs <= 0).any()) else pairs
    return float(n / max(1.0, 2.0 * positive.sum() - 1.0))


def mean_bounds(values: Values, level: float) -> Bounds | None:
    """The mean with its interval at this level; None where the values are worth fewer than three."""
    if len(values) < 3:
        return None
    size = effective_size(values)
    if size < 3:
        return None
    half = t_quantile(0.5 + level / 2, max(1, round(size) - 1)) * float(values.std(ddof=1)) / math.sqrt(size)
    mean = float(values.mean())
    return Bounds(mean, mean - half, mean + half, size)


def rise_bounds(values: Values, level: float) -> Bounds | None:
    """How much a straight line through the values rises from the first to the last, with its interval.

    None where there are fewer than `MIN_VALUES`, or what is left beside the line is worth fewer than four.
    """
    n = len(values)
    if n < MIN_VALUES:
        return None
    x = np.linspace(-0.5, 0.5, n)
    spread = float((x**2).sum())
    slope = float((x * values).sum()) / spread
    residuals = values - values.mean() - slope * x
    size = effective_size(residuals)
    if size < 4:
        return None
    error = math.sqrt(float((residuals**2).sum()) / (n - 2) / spread * n / size)
    half = t_quantile(0.5 + level / 2, max(1, round(size) - 2)) * error
    return Bounds(slope, slope - half, slope + half, size)


def find_stretch(values: Values, alpha: float) -> Stretch | None:
    """The stretch of at least `MIN_STRETCH` points that differs most from the rest; None where none differs.

    Every stretch is compared with all points outside it, so a step, a dip and a bump are found alike (Olshen and
    others, Biostatistics 2004). A stretch is called different where a series without a change would show one with
    probability `alpha` at most, by Bonferroni over all of them. The noise is that of what is left when this stretch
    and the next clearest are taken out, as an autoregression. Single outliers are replaced by their neighbours'
    median before.
    """
    if len(values) < MIN_VALUES:
        return None
    stride = math.ceil(len(values) / _MOST)
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
    # What is left is noise only where further changes are taken out too: two dips would hide each other.
    for _ in range(_TAKEN_OUT):
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
    if abs(score) <= t_quantile(1 - alpha / (2 * len(inner)), max(8, round(size / 2))):
        return None
    first, last = int(begin[best]) * stride, int(end[best]) * stride
    last = len(values) if last == n * stride else last
    rest = np.concatenate([values[:first], values[last:]])
    return Stretch(first, last, float(values[first:last].mean()), float(rest.mean()), score)


def without_outliers(values: Values, deviations: float = 5.0) -> Values:
    """The values, those far from the median of five neighbours replaced by it. A step stays where it is."""
    padded = np.pad(values, 2, mode="edge")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    scale = _MAD * float(np.median(np.abs(values - middle)))
    return np.where(np.abs(values - middle) > deviations * scale, middle, values)


def outliers(values: Values, alpha: float, width: int = 11) -> Values:
    """How far each value lies above the median of its neighbours, where that is more than noise; else 0.

    Noise by the median distance from that median; a value counts where a normal one would lie so far up in any of
    the places with probability `alpha` at most, and no less than eight deviations, for losses are not normal.
    """
    if len(values) < MIN_VALUES:
        return np.zeros_like(values)
    half = width // 2
    padded = np.pad(values, half, mode="reflect")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    above = values - middle
    scale = _MAD * float(np.median(np.abs(above)))
    limit = max(8.0, t_quantile(1 - alpha / len(values), 200)) * scale
    return np.where(above > limit, above, 0.0)


def _noise(residuals: Values) -> tuple[float, float]:
    """(standard deviation that a mean of n points has, times sqrt(n); number of independent points)."""
    n = len(residuals)
    variance = float((residuals**2).mean()) * n / (n - 3)
    if variance == 0.0:
        return 0.0, float(n)
    rho = float((residuals[1:] * residuals[:-1]).mean() / (residuals**2).mean())
    # The stretch was chosen to leave little behind, which hides likeness: the upper end of what rho may be counts.
    rho = min(_MOST_ALIKE, max(0.0, rho) + _DOUBT / math.sqrt(n))
    return math.sqrt(variance * (1 + rho) / (1 - rho)), n * (1 - rho) / (1 + rho)
