"""`mcframe metrics`: what a run logs, each name with its unit, its direction and its meaning."""

from __future__ import annotations

import dataclasses
import json
from fnmatch import fnmatchcase
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcframe.cli.options import Traceback
from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError, did_you_mean
from mcframe.metrics.catalogue import CATALOGUE, Metric, describe


def metrics(
    pattern: Annotated[
        str,
        typer.Argument(metavar="[PATTERN]", help="A name as it is logged, a part of one, or a glob like 'mc/*_ms'."),
    ] = "",
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    traceback: Traceback = False,
) -> None:
    """List what a run logs: names, units, which way is better, what they mean."""
    raise typer.Exit(report_user_errors(lambda: _list(pattern, as_json=json_), traceback=traceback))


def _list(pattern: str, *, as_json: bool) -> int:
    found = matching(pattern)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(metric) for metric in found], indent=2, ensure_ascii=False))
        return 0
    table = Table()
    for column in ("name", "unit", "better", "meaning"):
        table.add_column(column, no_wrap=column in ("unit", "better"), overflow="fold")
    for metric in found:
        table.add_row(*(escape(cell) for cell in (metric.name, metric.unit, metric.better, metric.meaning)))
    Console().print(table)
    return 0


def matching(pattern: str) -> list[Metric]:
    """The metrics that a pattern means, in the catalogue's order. Raises UserError where it means none."""
    try:
        return [describe(pattern)]
    except KeyError:
        pass  # no logged name: a part of some, perhaps
    found = [metric for metric in CATALOGUE if pattern in metric.name or fnmatchcase(metric.name, pattern)]
    if not found:
        names = [metric.name for metric in CATALOGUE]
        raise UserError(
            f"no metric is called {pattern}{did_you_mean(pattern, names)}",
            remedy="`mcframe metrics` lists them all; a pattern is a part of a name, or a glob such as 'mc/*_ms'",
        )
    return found
