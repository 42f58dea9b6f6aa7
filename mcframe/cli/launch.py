"""`mcframe run`: start the DeepSpeed launcher with `mcframe/run.py`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import psutil
import typer

import mcframe
from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import EXIT_INTERRUPTED, UserError
from mcframe.training.engine import free_port

_MEETING = ("--master_port", "--master_addr", "--hostfile", "-H", "--no_ssh", "--node_rank")
"""Options of DeepSpeed's launcher that set the address or port of the ranks, or name other machines."""


def run(
    context: typer.Context,
    ranks: Annotated[int | None, typer.Option(help="Processes on this machine; default: one a GPU, or one.")] = None,
    launcher: Annotated[str, typer.Option(help="More options for the deepspeed launcher, in one string.")] = "",
) -> None:
    """Train: `mcframe run --gin gin/quickstart.gin`. Takes the options of mcframe/run.py (see its --help)."""
    if code := report_user_errors(lambda: _check_named(context.args), traceback=False):
        raise typer.Exit(code)
    script = Path(mcframe.__file__).with_name("run.py")
    options = launcher.split()
    if ranks is not None:
        options += ["--num_accelerators", str(ranks)]
    if not any(option.partition("=")[0] in _MEETING for option in options):
        # Two runs on one machine must not use DeepSpeed's default port both.
        options += ["--master_port", str(free_port())]
    # A Ctrl-C reaches every process of the terminal: the ranks save and end, while this process and the launcher, which
    # inherits that it ignores the signal, wait for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", *options, str(script), *context.args]
    )

    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        # Before the launcher has started a rank, no other process receives the signal.
        if process.poll() is None and not psutil.Process(process.pid).children():
            process.terminate()

    signal.signal(signal.SIGINT, interrupt)
    code = process.wait()
    if interrupted and code in (1, -signal.SIGTERM):  # the launcher's own code at a Ctrl-C, and our signal
        code = EXIT_INTERRUPTED
    raise typer.Exit(code if code >= 0 else 128 - code)


def _check_named(arguments: list[str]) -> int:
    """Return 0. Raise UserError if no gin file is named, before the launcher prints lines of its own."""
    named = any(each.partition("=")[0] in ("--gin", "-h", "--help") for each in arguments)
    if not named:
        file = next((each for each in arguments if each.endswith(".gin")), "gin/quickstart.gin")
        raise UserError("missing --gin FILE", remedy=f"Run mcframe run --gin {file}.")
    return 0
