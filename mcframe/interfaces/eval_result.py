"""What an evaluation found out: figures with intervals, tables, charts, sentences. Part of the plug-in API.

Plug-ins import these from `mcframe.hookspecs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; NaN where undefined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.value != self.value:
            return "undefined"
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class Table:
    """What a person reads: a row is a cell a column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | Interval | None]]


@dataclass(frozen=True)
class Chart:
    """What a person looks at: lines of (x, interval) points, by name."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, Interval]]]
    log_x: bool = False


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found out.

    metrics   flat figures, `eval/NAME/...`; bounds of an interval end in `_low` and `_high`
    verdicts  sentences that say what the figures mean; notes: what was left out, and what to be careful about
    """

    metrics: Mapping[str, float]
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    verdicts: Sequence[str] = ()
    notes: Sequence[str] = ()
