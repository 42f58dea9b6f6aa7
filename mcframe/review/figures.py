"""Figures in words: values with as many places as say something, means with their intervals."""

from __future__ import annotations

from mcframe.review.change import mean_bounds
from mcframe.review.record import Record
from mcframe.review.rules import Rules
from mcframe.telemetry.metrics import describe

NOTHING = "–"
_COUNTS = ("entries", "iterations", "tokens", "micro-batches")
"""Units of what is set, not measured: a schedule has no interval."""


def figure(value: float | None) -> str:
    """A value in four places; thousands with commas."""
    if value is None:
        return NOTHING
    if abs(value) >= 10_000 or (value == round(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def unit(name: str) -> str:
    """The unit of a metric, where it has one."""
    try:
        found = describe(name).unit
    except KeyError:
        return ""
    return "" if found == "1" else found


def late_mean(run: Record, name: str, rules: Rules) -> str:
    """`0.3121 (0.3007 to 0.3234)`: the mean over the late share, with its interval where there is one."""
    series = run.get(name)
    if series is None:
        return NOTHING
    values = series.late(rules.late)
    bounds = mean_bounds(values, rules.level)
    if bounds is None or unit(name) in _COUNTS:
        return figure(float(values.mean()) if len(values) else series.last)
    if bounds.high == bounds.low:
        return figure(bounds.value)
    return f"{figure(bounds.value)} ({figure(bounds.low)} to {figure(bounds.high)})"


def row(run: Record, name: str, rules: Rules) -> tuple[str, str, str, str, str]:
    """A metric's row: name, unit, first, last, late mean."""
    series = run.series[name]
    return name, unit(name), figure(series.first), figure(series.last), late_mean(run, name, rules)


COLUMNS = ("metric", "unit", "first", "last", "late mean (interval)")
