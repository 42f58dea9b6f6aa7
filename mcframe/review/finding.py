"""What a rule says: something found, with its evidence, or why it could not judge."""

from __future__ import annotations

from dataclasses import dataclass

from mcframe.review.record import Record
from mcframe.review.rules import Rules


@dataclass(frozen=True)
class Plot:
    """Curves of metrics by tokens.

    metrics   what is drawn, each in the run and, where there is one, in its twin
    shade     a stretch to mark, in tokens
    line      a limit to draw
    stacked   areas on top of each other, of the run alone, for parts of a whole
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    shade: tuple[float, float] | None = None
    line: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Finding:
    """Something that a person should know.

    rule, severity   as in rules.toml
    title            what is the case, one sentence
    evidence         figures and the test that they passed
    step             what to do next
    """

    rule: str
    severity: str
    title: str
    evidence: tuple[str, ...]
    step: str
    plot: Plot | None = None


@dataclass(frozen=True)
class NotJudged:
    """A rule that could say nothing, why, and what to do that it can; nothing where that is plain."""

    rule: str
    reason: str
    step: str = ""


@dataclass(frozen=True)
class Case:
    """What a rule looks at."""

    run: Record
    rules: Rules
    twin: Record | None = None

    def missing(self, rule: str, name: str) -> NotJudged:
        """The run does not log a metric."""
        return NotJudged(rule, f"no {name} in the log")

    def short(self, rule: str, name: str) -> NotJudged:
        """Too few values, or too much alike, for an interval."""
        series = self.run.get(name)
        count = series.count if series else 0
        return NotJudged(rule, f"{count} values of {name} are worth too few independent ones for a test")


Outcome = Finding | NotJudged | None
"""None: the rule looked, and found nothing."""
