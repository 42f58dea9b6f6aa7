"""`mcframe compare`: several runs by tokens, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mcframe.cli.options import Trust, command
from mcframe.errors import UserError
from mcframe.review.comparison import compare as comparison_of
from mcframe.review.comparison import named, token_comparisons
from mcframe.review.record import read_run
from mcframe.review.render import write
from mcframe.review.rules import read_rules
from mcframe.trust import check_links

PAGE = "comparison"


@command
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Two run directories or more.")],
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="tests.late of this file is used.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write to; default: comparison, next to the first run.")
    ] = None,
    trust: Trust = False,
) -> int:
    """Compare runs: curves by tokens, differences of their configurations, final metrics over seeds."""
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError(
            f"expected two different runs or more, got {', '.join(map(str, runs))}",
            remedy="Pass run directories: mcframe compare runs/a runs/b.",
        )
    for run in runs:
        check_links(run, trust)
    thresholds = read_rules(rules)
    labelled = named([read_run(run) for run in runs])
    pages = write(comparison_of(labelled, thresholds), out or runs[0].resolve().parent / PAGE, PAGE)
    for line in [*token_comparisons(labelled), *map(str, pages)]:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)
    return 0
