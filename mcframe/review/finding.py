"""Results of rules: findings with their evidence, rules that were skipped, and what a rule reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcframe.review.change import Bounds, mean_bounds, rise_bounds
from mcframe.review.record import Record
from mcframe.review.rules import Rules
from mcframe.review.series import Series


@dataclass(frozen=True)
class Plot:
    """Curves of metrics over tokens.

    Attributes:
        name: stem of the file.
        title: caption.
        metrics: the curves, each of the run and of its baseline.
        shade: a stretch to mark, in tokens.
        line: a limit to draw.
        stacked: areas on top of each other, of the run alone, for parts of a sum.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    shade: tuple[float, float] | None = None
    line: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Finding:
    """A result of a rule.

    Attributes:
        rule: as in rules.toml.
        severity: as in rules.toml.
        title: the result in one sentence.
        evidence: numbers and the test that they passed.
        step: the next step.
        plot: curves that show it.
    """

    rule: str
    severity: str
    title: str
    evidence: tuple[str, ...]
    step: str
    plot: Plot | None = None


class SkipRule(Exception):
    """Raised by a rule that cannot be tested, with the reason and what makes it testable."""

    def __init__(self, reason: str, step: str = "") -> None:
        super().__init__(reason)
        self.reason, self.step = reason, step


@dataclass(frozen=True)
class Case:
    """A run under review, the thresholds, and the run to compare it with."""

    run: Record
    rules: Rules
    baseline: Record | None = None

    @property
    def runs(self) -> dict[str, Record]:
        """The run and its baseline, by name."""
        return {run.name: run for run in (self.run, self.baseline) if run is not None}

    def series(self, name: str) -> Series:
        """Return a metric of the run; skip the rule if the log does not have it."""
        series = self.run.get(name)
        if series is None:
            raise SkipRule(f"no {name} in the log")
        return series

    def too_short(self, name: str) -> SkipRule:
        """Return the exception for a metric with too few or too similar values."""
        series = self.run.get(name)
        return SkipRule(f"{series.count if series else 0} values of {name} are too few independent ones for a test")

    def late_mean(self, name: str) -> Bounds:
        """Return the mean of a metric over the late part of the run; skip the rule if it has no interval."""
        bounds = mean_bounds(self.series(name).late(self.rules.late), self.rules.level)
        if bounds is None:
            raise self.too_short(name)
        return bounds

    def late_rise(self, name: str) -> Bounds | None:
        """Return the rise of a metric over the late part, with an interval at 1 - alpha."""
        return rise_bounds(self.series(name).late(self.rules.late), 1 - self.rules.alpha)

    def finding(self, rule: str, title: str, evidence: Sequence[str], step: str, plot: Plot | None = None) -> Finding:
        """Return a finding with the severity of its rule."""
        return Finding(rule, str(self.rules.tables[rule]["severity"]), title, tuple(evidence), step, plot)
