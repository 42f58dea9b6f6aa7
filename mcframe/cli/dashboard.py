"""`mcframe dashboard`: the panels of a run for TensorBoard and for wandb."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mcframe.cli.options import Trust, command
from mcframe.cli.streams import echo
from mcframe.errors import UserError
from mcframe.files import replaced
from mcframe.metrics.figure_data import PICTURES
from mcframe.metrics.jsonl_logger import METRICS, check_own, parse
from mcframe.metrics.tensorboard_logger import write_layout
from mcframe.metrics.wandb_workspace import workspace_script
from mcframe.trust import check_links

FILE = "wandb_dashboard.py"

dashboard = typer.Typer(help="Write the dashboard of a run, for TensorBoard or for wandb.", no_args_is_help=True)


@dashboard.command()
@command
def wandb(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run directory: panels of what it has measured. Without: all panels."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Where to write; default: RUN/{FILE}, or {FILE} here.")
    ] = None,
    trust: Trust = False,
) -> int:
    """Write a Python file that makes a workspace of mcframe's panels on wandb."""
    if run is not None:
        check_links(run, trust)
    file = out or (run / FILE if run else Path(FILE))
    names = None if run is None else _measured(run)
    title = "mcframe's dashboard" if run is None else f"The dashboard of {run.resolve().name}"
    text = workspace_script(file.name, names, title)
    with replaced(file) as partial:
        partial.write_text(text, "utf-8")
    echo(f"{file}\npip install wandb-workspaces\npython {shlex.quote(str(file))} ENTITY/PROJECT")
    return 0


@dashboard.command()
@command
def tensorboard(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, or a folder of TensorBoard's event files.")
    ],
    trust: Trust = False,
) -> int:
    """Write the dashboard into event files that have none; what mcframe trains has it already."""
    check_links(run, trust)
    if not any(run.rglob("*tfevents*")):
        raise UserError(
            f"{run} holds no event files of TensorBoard's",
            remedy="Name a run directory that has a folder tensorboard.",
        )
    echo(f"tensorboard --logdir {write_layout(run)}")
    return 0


def _measured(run: Path) -> list[str]:
    """Return every name in a run's records, sorted. Raises UserError if none is found."""
    names: set[str] = set()
    for file in (METRICS, PICTURES):
        if (run / file).exists():
            with (run / file).open("rb") as lines:
                for entry in filter(None, map(parse, lines)):
                    names.update(entry.get("counts", entry))
    if not names:
        if (run / METRICS).exists():
            check_own(run / METRICS)
        raise UserError(
            f"{run} holds no {METRICS} with a line in it",
            remedy="Name a run directory, such as runs/quickstart, or none for all panels.",
        )
    return sorted(names)
