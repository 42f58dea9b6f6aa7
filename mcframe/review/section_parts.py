"""What every section of a review is made of: plots of the run and its twin, the metrics that are there."""

from __future__ import annotations

from collections.abc import Sequence

from mcframe.review.document import Part
from mcframe.review.figures import table
from mcframe.review.finding import Case, Plot
from mcframe.review.plots import draw
from mcframe.review.record import Record


def runs(case: Case) -> dict[str, Record]:
    """The run and, where there is one, its twin, by name."""
    return {case.run.name: case.run} if case.twin is None else {case.run.name: case.run, case.twin.name: case.twin}


def plot(case: Case, name: str, title: str, *metrics: str, stacked: bool = False) -> list[Part]:
    """A plot of these metrics; nothing where none has a point."""
    picture = draw(Plot(name, title, metrics, stacked=stacked), runs(case))
    return [] if picture is None else [picture]


def tabled(case: Case, names: Sequence[str]) -> list[Part]:
    """A table of these metrics; nothing where there are none."""
    return [table(case.run, names, case.rules)] if names else []


def present(run: Record, wanted: Sequence[str]) -> list[str]:
    """Those of these names that the run logs, each once; a name that ends with / or _ stands for all that begin so."""
    names: list[str] = []
    for name in wanted:
        prefix = name.endswith(("/", "_"))
        found = sorted(run.named(name), key=_natural) if prefix else [name] if run.get(name) else []
        names += [each for each in found if each not in names]
    return names


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("/")
    return (head, int(tail)) if tail.isdigit() else (name, 0)
