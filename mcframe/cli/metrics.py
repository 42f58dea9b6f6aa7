"""`mcframe metrics`: the metrics that a run logs, with unit, better direction and meaning."""

from __future__ import annotations

import dataclasses
import json
from fnmatch import fnmatchcase
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mcframe.cli.options import Json, command
from mcframe.cli.streams import echo
from mcframe.errors import UserError, did_you_mean
from mcframe.metrics.catalogue import CATALOGUE, Metric, describe
from mcframe.metrics.tables import FittedTable


@command
def metrics(
    pattern: Annotated[
        str,
        typer.Argument(metavar="[PATTERN]", help="A name as it is logged, a part of one, or a glob like 'mc/*_ms'."),
    ] = "",
    json_: Json = False,
) -> int:
    """List what a run logs: names, units, which way is better, what they mean."""
    found = matching(pattern)
    if json_:
        echo(json.dumps([dataclasses.asdict(metric) for metric in found], indent=2, ensure_ascii=False))
        return 0
    table = FittedTable()
    for column in ("name", "unit", "better", "meaning"):
        table.add_column(column, no_wrap=column in ("unit", "better"), overflow="fold")
    for metric in found:
        table.add_row(*(escape(cell) for cell in (metric.name, metric.unit, metric.better, metric.meaning)))
    Console().print(table)
    return 0


def matching(pattern: str) -> list[Metric]:
    """Return the metrics that match a pattern, in the catalogue's order. Raises UserError if none does."""
    try:
        return [describe(pattern)]
    except KeyError:
        pass  # not a logged name: perhaps a part of one, or a glob
    found = [metric for metric in CATALOGUE if pattern in metric.name or fnmatchcase(metric.name, pattern)]
    if not found:
        names = [metric.name for metric in CATALOGUE]
        raise UserError(
            f"unknown metric {pattern}{did_you_mean(pattern, names)}",
            remedy="Run `mcframe metrics` for a list. A pattern is a part of a name, or a glob such as 'mc/*_ms'.",
        )
    return found
