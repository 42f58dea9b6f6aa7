"""Metrics as text: rounded values, means with their intervals, trends, tables of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mcframe.metrics.catalogue import describe
from mcframe.review.change import mean_bounds, rise_bounds
from mcframe.review.document import Grid
from mcframe.review.record import Record
from mcframe.review.rules import Rules

NOTHING = "–"
_SCHEDULED = ("entries", "iterations", "tokens", "micro-batches")
"""Units of scheduled quantities, which have no interval."""
_MAX_DIGITS = 6


def rounded(value: float | None) -> str:
    """Return a value with four significant digits, thousands with commas."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def with_error(value: float, half: float) -> str:
    """Return `3,745 ± 190`: two digits of the error (above 0), and as many decimals of the value."""
    digits = 1 - math.floor(math.log10(half))
    if digits > _MAX_DIGITS:
        return f"{value:.4g} ± {half:.2g}"
    shown = max(0, digits)
    return f"{round(value, digits):,.{shown}f} ± {round(half, digits):,.{shown}f}"


def unit_and_meaning(name: str) -> tuple[str, str]:
    """Return the unit and the meaning of a metric by the catalogue, empty if it has none."""
    try:
        found = describe(name)
    except KeyError:
        return "", ""
    return "" if found.unit == "1" else found.unit, found.meaning


def late_mean(run: Record, name: str, rules: Rules) -> str:
    """Return `0.3121 ± 0.0034`: the mean over the late part, with half of its interval where there is one."""
    series = run.get(name)
    if series is None:
        return NOTHING
    values = series.late(rules.late)
    bounds = mean_bounds(values, rules.level)
    if bounds is None or unit_and_meaning(name)[0] in _SCHEDULED:
        return rounded(float(values.mean()) if len(values) else series.last)
    if bounds.high == bounds.low:
        return rounded(bounds.value)
    return with_error(bounds.value, (bounds.high - bounds.low) / 2)


def late_trend(run: Record, name: str, rules: Rules) -> str:
    """Return `↗ +0.031` if a straight line through the late part clearly rises, ↘ if it falls, else `→`.

    Empty for too few values or a scheduled quantity.
    """
    rise = rise_bounds(run.series[name].late(rules.late), 1 - rules.alpha)
    if rise is None or unit_and_meaning(name)[0] in _SCHEDULED:
        return ""
    return "→" if rise.low <= 0 <= rise.high else f"{'↗' if rise.value > 0 else '↘'} {rise.value:+.2g}"


def table(run: Record, names: Sequence[str], rules: Rules) -> Grid | None:
    """Return metrics with first and last value, late mean, trend and meaning; None without names."""
    rows, meanings = [], []
    for name in names:
        series, (unit, meaning) = run.series[name], unit_and_meaning(name)
        mean, trend = late_mean(run, name, rules), late_trend(run, name, rules)
        rows.append((name, unit, rounded(series.first), rounded(series.last), mean, trend))
        meanings.append(meaning)
    columns = ("metric", "unit", "first", "last", f"mean, last {100 * rules.late:.0f} %", "trend")
    return Grid(columns, rows, meanings=meanings) if names else None
