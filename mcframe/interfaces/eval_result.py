"""Results of evaluations: values with intervals, tables, charts, conclusions. Part of the plug-in API.

Plug-ins import these from `mcframe.hookspecs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; NaN if undefined, such as the bounds of a single document."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.value != self.value:
            return "undefined"
        if self.low != self.low or self.high != self.high:
            return f"{self.value:+.4f} [no interval]"
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class Table:
    """A table, with one cell per column in each row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | Interval | None]]


@dataclass(frozen=True)
class Chart:
    """A line chart: name -> (x, interval) points."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, Interval]]]
    log_x: bool = False


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation.

    Attributes:
        metrics: Flat values, `eval/NAME/...`; names of bounds end in `_low` and `_high`.
        tables, charts: For the report.
        conclusions: Sentences that interpret the values.
        notes: Omissions and warnings.
    """

    metrics: Mapping[str, float]
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    conclusions: Sequence[str] = ()
    notes: Sequence[str] = ()
