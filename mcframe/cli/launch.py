"""`mcframe run`: start the DeepSpeed launcher with `mcframe/run.py`."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil
import typer

import mcframe
from mcframe.cli.run_options import Parser, arguments, launcher_arguments
from mcframe.cli.user_errors import report_user_errors
from mcframe.environment import free_port
from mcframe.errors import EXIT_INTERRUPTED, Location, UserError
from mcframe.files import user_path

_MEETING = ("--master_port", "--master_addr", "--hostfile", "-H", "--no_ssh", "--node_rank")
"""Options of DeepSpeed's launcher that set the address or port of the ranks, or name other machines."""

_DEVICES = "CUDA_VISIBLE_DEVICES"
_RESOURCES = ("--include", "-i", "--exclude", "-e", "--num_gpus", "--num_accelerators", "--num_nodes")


def run(context: typer.Context) -> None:
    """Train: `mcframe run --gin gin/quickstart.gin`."""
    passed = list(context.args)
    raise typer.Exit(report_user_errors(lambda: _launch(passed), traceback="--traceback" in passed))


def _launch(passed: list[str]) -> int:
    """Check the options, start the launcher and return its exit code."""
    if "--launcher" in passed[:-1]:  # argparse would take a value such as --no_ssh for an option
        at = passed.index("--launcher")
        passed[at : at + 2] = [f"--launcher={passed[at + 1]}"]
    if not any(each.partition("=")[0] in ("--gin", "-h", "--help") for each in passed):
        file = next((each for each in passed if each.endswith(".gin")), "gin/quickstart.gin")
        raise UserError("missing --gin FILE", remedy=f"Run mcframe run --gin {file}.")
    launcher = launcher_arguments()
    arguments(launcher).parse_args(passed)  # every rank would print the same error, among lines of the launcher
    own, rest = launcher.parse_known_args(passed)
    options, environment = _launcher_options(own.launcher, own.ranks)
    script = Path(mcframe.__file__).with_name("run.py")
    # A Ctrl-C reaches every process of the terminal: the ranks save and end, while this process and the launcher, which
    # inherits that it ignores the signal, wait for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", *options, str(script), *rest], env=environment
    )
    return _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the launcher and return the exit code, 130 after a Ctrl-C."""
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
        return EXIT_INTERRUPTED
    return code if code >= 0 else 128 - code


def _launcher_options(written: str, ranks: int | None) -> tuple[list[str], dict[str, str]]:
    """Return the options and the environment of the launcher."""
    try:
        options = shlex.split(written)
    except ValueError as error:
        raise UserError(
            f"--launcher: {error}: {written}", remedy="Write options as in a shell, with closed quotes."
        ) from error
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-H", "--hostfile")
    hosts, options = parser.parse_known_args(options)
    if hosts.hostfile is not None:
        file = user_path(hosts.hostfile, "--hostfile")
        _check_hosts(file)
        options += ["--hostfile", str(file)]
    named = {option.partition("=")[0] for option in options}
    if not named & set(_MEETING):
        # Two runs on one machine must not use DeepSpeed's default port both.
        options += ["--master_port", str(free_port())]
    environment = dict(os.environ)
    if hosts.hostfile is None and _DEVICES in environment:
        return [*options, *_devices(ranks, environment, named)], environment
    return options + ([] if ranks is None else ["--num_accelerators", str(ranks)]), environment


def _devices(ranks: int | None, environment: dict[str, str], options: set[str]) -> Sequence[str]:
    """Return the launcher's options for CUDA_VISIBLE_DEVICES, and take out of the environment what they replace.

    Without usable GPUs the launcher would stop at the number -1, and number the ranks of a CPU in the variable. With
    a number of ranks it would ignore the variable.
    """
    import torch

    if environment.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        del environment[_DEVICES]
        environment["DS_ACCELERATOR"] = "cpu"
        return [] if ranks is None else ["--num_accelerators", str(ranks)]
    devices = [each.strip() for each in environment[_DEVICES].split(",")]
    if not all(map(str.isdecimal, devices)) or (ranks is not None and ranks > len(devices)):
        raise UserError(
            f"{_DEVICES}: expected numbers of {ranks or 'some'} GPUs, got {environment[_DEVICES]}",
            remedy=f"Set {_DEVICES} to numbers that `nvidia-smi -L` lists, one a rank.",
        )
    if ranks is None or options & set(_RESOURCES):
        return [] if ranks is None else ["--num_accelerators", str(ranks)]
    del environment[_DEVICES]
    return ["--include", f"localhost:{','.join(devices[:ranks])}"]


def _check_hosts(file: Path) -> None:
    """Raise UserError unless a host file can be read: without one, the launcher would train on this machine alone."""
    remedy = "Write one line a machine, such as: node-a slots=8"
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"--hostfile {file}: {reason}", remedy="Pass a file of machines. " + remedy) from error
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        found = re.match(r"(\S+)\s+slots=([1-9]\d*)\b", line)
        if found is None or found[1] in seen:
            got = f"{line!r} again" if found else repr(line)
            raise UserError(f"expected NAME slots=N, got {got}", remedy=remedy, location=Location(file, number))
        seen.add(found[1])
    if not seen:
        raise UserError(f"--hostfile {file}: expected machines, got none", remedy=remedy)
