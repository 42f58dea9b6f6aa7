"""`mcframe review`: a report on a run, with findings and their evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mcframe.cli.options import Trust, command
from mcframe.errors import UserError
from mcframe.review.finding import Case, Finding
from mcframe.review.record import read_run
from mcframe.review.render import write
from mcframe.review.review import review as review_of
from mcframe.review.rules import read_rules
from mcframe.trust import check_links

PAGE = "review"
_STYLES = {"high": "bold red", "medium": "yellow", "low": "cyan"}


@command
def review(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory; running and crashed ones too.")],
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run to compare with, such as its plain baseline.")
    ] = None,
    from_: Annotated[int | None, typer.Option("--from", min=0, metavar="STEP", help="The first step to read.")] = None,
    to: Annotated[int | None, typer.Option(min=0, metavar="STEP", help="The last step to read.")] = None,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="Thresholds, TOML: docs/review.md.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write to; default: RUN/review.")] = None,
    trust: Trust = False,
) -> int:
    """Review a run: throughput, working contexts, LensNet, ΔNLL, findings with their evidence."""
    thresholds = read_rules(rules)
    for directory in filter(None, (run, against)):
        check_links(directory, trust)
    record = read_run(run, from_, to)
    if against is not None and against.resolve() == run.resolve():
        raise UserError(f"--against: expected another run, got {run} itself", remedy="Pass the baseline's folder.")
    baseline = read_run(against, from_, to) if against is not None else None
    document, found = review_of(Case(record, thresholds, baseline))
    console = Console()
    _show(found, console)
    for page in write(document, out or run / PAGE, PAGE):
        console.print(str(page), highlight=False, markup=False, soft_wrap=True)
    return 0


def _show(found: list[Finding], console: Console) -> None:
    for finding in found:
        console.print(f"{finding.severity:<6}", style=_STYLES[finding.severity], end=" ")
        console.print(finding.title, highlight=False, markup=False, soft_wrap=True)
    if not found:
        console.print("No rule has a finding.")
