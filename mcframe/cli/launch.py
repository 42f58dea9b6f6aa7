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
"""Options of DeepSpeed's launcher that say where ranks meet, or that there are other machines."""


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
    if not _names_hosts_or_port(options):
        # Two runs on one machine must not meet at DeepSpeed's one default port.
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
        # Before the launcher has started a rank, nobody else would hear the signal.
        if process.poll() is None and not psutil.Process(process.pid).children():
            process.terminate()

    signal.signal(signal.SIGINT, interrupt)
    code = process.wait()
    if interrupted and code in (1, -signal.SIGTERM):  # the launcher's own code at a Ctrl-C, and our signal
        code = EXIT_INTERRUPTED
    raise typer.Exit(code if code >= 0 else 128 - code)


def _check_named(arguments: list[str]) -> int:
    """0; raises UserError where no gin file is named, before the launcher buries it among its own lines."""
    named = any(each.partition("=")[0] in ("--gin", "-h", "--help") for each in arguments)
    if not named:
        file = next((each for each in arguments if each.endswith(".gin")), "gin/quickstart.gin")
        raise UserError("which gin file to train from was not said", remedy=f"mcframe run --gin {file}")
    return 0


def _names_hosts_or_port(options: list[str]) -> bool:
    """Whether the user has said where ranks meet, or names hosts, on which a port free here may be taken."""
    return any(option.partition("=")[0] in _MEETING for option in options)
