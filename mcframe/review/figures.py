"""Figures in words: values with as many places as say something, means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mcframe.metrics.catalogue import describe
from mcframe.review.change import mean_bounds, rise_bounds
from mcframe.review.document import Grid
from mcframe.review.record import Record
from mcframe.review.rules import Rules

NOTHING = "–"
_COUNTS = ("entries", "iterations", "tokens", "micro-batches")
"""Units of what is set, not measured: a schedule has no interval."""
_MOST_PLACES = 6


def figure(value: float | None) -> str:
    """A value in four places; thousands with commas."""
    if value is None:
        return NOTHING
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def with_error(value: float, half: float) -> str:
    """`3,745 ± 190`: two places of the error, and as many of the value. half must be above 0."""
    places = 1 - math.floor(math.log10(half))
    if places > _MOST_PLACES:
        return f"{value:.4g} ± {half:.2g}"
    shown = max(0, places)
    return f"{round(value, places):,.{shown}f} ± {round(half, places):,.{shown}f}"


def unit(name: str) -> str:
    """The unit of a metric, where it has one."""
    try:
        found = describe(name).unit
    except KeyError:
        return ""
    return "" if found == "1" else found


def meaning(name: str) -> str:
    """What a metric means, by the catalogue; nothing where it has none."""
    try:
        return describe(name).meaning
    except KeyError:
        return ""


def late_mean(run: Record, name: str, rules: Rules) -> str:
    """`0.3121 ± 0.0034`: the mean over the late share, with half of its interval where there is one."""
    series = run.get(name)
    if series is None:
        return NOTHING
    values = series.late(rules.late)
    bounds = mean_bounds(values, rules.level)
    if bounds is None or unit(name) in _COUNTS:
        return figure(float(values.mean()) if len(values) else series.last)
    if bounds.high == bounds.low:
        return figure(bounds.value)
    return with_error(bounds.value, (bounds.high - bounds.low) / 2)


def late_trend(run: Record, name: str, rules: Rules) -> str:
    """`↗ +0.031` where a straight line through the late share surely rises, ↘ where it falls, else `→`.

    Nothing where too few values are there, or the metric is set, not measured.
    """
    rise = rise_bounds(run.series[name].late(rules.late), 1 - rules.alpha)
    if rise is None or unit(name) in _COUNTS:
        return ""
    if rise.low <= 0 <= rise.high:
        return "→"
    return f"{'↗' if rise.value > 0 else '↘'} {rise.value:+.2g}"


def table(run: Record, names: Sequence[str], rules: Rules) -> Grid:
    """Metrics with their first and last value, the mean over the late share, and what they mean."""
    late = f"last {100 * rules.late:.0f} %"
    columns = ("metric", "unit", "first", "last", f"mean, {late}", "trend")
    rows = []
    for name in names:
        series = run.series[name]
        mean, trend = late_mean(run, name, rules), late_trend(run, name, rules)
        rows.append((name, unit(name), figure(series.first), figure(series.last), mean, trend))
    return Grid(columns, rows, meanings=[meaning(name) for name in names])
