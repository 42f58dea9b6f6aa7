"""`mcframe run`: start the DeepSpeed launcher with `mcframe/run.py`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import mcframe


def run(
    context: typer.Context,
    ranks: Annotated[int | None, typer.Option(help="Processes on this machine; default: one a GPU, or one.")] = None,
    launcher: Annotated[str, typer.Option(help="More options for the deepspeed launcher, in one string.")] = "",
) -> None:
    """Train: `mcframe run --gin gin/quickstart.gin`. Takes the options of mcframe/run.py (see its --help)."""
    script = Path(mcframe.__file__).with_name("run.py")
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", *launcher.split()]
    if ranks is not None:
        command += ["--num_accelerators", str(ranks)]
    # A Ctrl-C reaches every process of the terminal: the ranks save and end, while this process and the launcher, which
    # inherits that it ignores the signal, wait for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen([*command, str(script), *context.args])
    raise typer.Exit(process.wait())
