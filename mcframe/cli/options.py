"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Gin = Annotated[list[str], typer.Option("--gin", metavar="FILE", help="A gin file; may be repeated.")]
Set = Annotated[list[str], typer.Option("--set", metavar="BINDING", help="A binding, such as 'run.seed = 1'.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a checkpoint in it.")]
