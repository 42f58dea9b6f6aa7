"""`mcframe compare`: several runs by tokens, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mcframe.cli.options import Traceback
from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError
from mcframe.review.comparison import compare as comparison_of
from mcframe.review.comparison import named, token_comparisons
from mcframe.review.record import read_run
from mcframe.review.render import write
from mcframe.review.rules import read_rules

PAGE = "comparison"


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Two run directories or more.")],
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="tests.late of this file is used.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write to; default: comparison, next to the first run.")
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Compare runs: curves by tokens, differences of their configurations, final metrics over seeds."""

    def act() -> int:
        if len({run.resolve() for run in runs}) < max(2, len(runs)):
            raise UserError(
                f"expected two different runs or more, got {len(runs)}",
                remedy="Pass run directories: mcframe compare runs/a runs/b.",
            )
        thresholds = read_rules(rules)
        labelled = named([read_run(run) for run in runs])
        console = Console()
        for line in token_comparisons(labelled):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        folder = out or runs[0].resolve().parent / PAGE
        for page in write(comparison_of(labelled, thresholds), folder, PAGE):
            console.print(str(page), highlight=False, markup=False, soft_wrap=True)
        return 0

    raise typer.Exit(report_user_errors(act, traceback=traceback))
