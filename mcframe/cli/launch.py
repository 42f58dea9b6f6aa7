"""`mcframe run`: start the DeepSpeed launcher with `mcframe/run.py`."""

from __future__ import annotations

import ctypes
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
import typer

import mcframe
from mcframe.cli.run_options import Parser, arguments, launcher_arguments
from mcframe.cli.user_errors import report_user_errors
from mcframe.completion import Completion
from mcframe.ending_signals import as_parent, ending_signals, handle_ending_signals
from mcframe.environment import free_port
from mcframe.errors import ONE_REQUEST_S, Location, UserError
from mcframe.files import user_path

_MEETING = ("--master_port", "--master_addr", "--hostfile", "-H", "--no_ssh", "--node_rank")
"""Options of DeepSpeed's launcher that set the address or port of the ranks, or name other machines."""

_DEVICES = "CUDA_VISIBLE_DEVICES"
_HOST_FILE = Path("/job/hostfile")
"""The host file that DeepSpeed's launcher reads without --hostfile."""
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.2
_AT_ONCE_S = 5.0
"""Seconds that ranks have to end after a second Ctrl-C."""
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
    script = str(Path(mcframe.__file__).with_name("run.py"))
    remote = "--hostfile" in options or _HOST_FILE.is_file()
    level = f"--log_level={'error' if remote else 'critical'}"  # errors of one machine are below in Launched
    command = [sys.executable, "-m", "deepspeed.launcher.runner", level, *options, script, *rest]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, () if remote else ending_signals())  # the launcher inherits it
    try:
        return Launched(command, as_parent(environment), script, remote=remote).wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Launched:
    """The launcher and the ranks of this machine.

    The launcher starts with ending signals blocked, for it would kill ranks that save for more than 30 s. This process
    passes signals on to the ranks, which unblock them and look for those that the launcher has received.

    Args:
        command: The launcher's command.
        environment: Its environment.
        script: The script of the ranks.
        remote: Whether the launcher starts the ranks on other machines. It then stops them by itself.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], script: str, *, remote: bool) -> None:
        self._script, self._remote = script, remote
        self._received: list[int] = []
        self._since = math.inf
        self._adopted: set[int] = set()
        self._codes: list[int] = []
        self._kill_at, self._killed = math.inf, False
        if sys.platform == "linux":  # the ranks of a launcher that was killed become children of this process
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._completion = None if remote else Completion()
        announced = environment if self._completion is None else self._completion.announce(environment)
        self._process = subprocess.Popen(command, env=announced)

    def wait(self) -> int:
        """Wait for the launcher and all ranks. Return the exit code, 128 plus the number of a signal."""
        before = handle_ending_signals(self._pass_on)
        try:
            while self._process.poll() is None or self._remaining():
                time.sleep(_POLL_S)
                if time.monotonic() > self._kill_at:
                    self._kill()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            finished = self._completion is None or self._completion.end()
        code = max(map(_as_shell, (self._process.returncode, *self._codes)))
        if not code and not finished:  # the process that starts the ranks was killed, before them or with them
            code = 128 + signal.SIGKILL
        ending = {int(number) for number in before}
        if self._received and (self._killed or code - 128 in ending):
            if self._killed:
                print("interrupted", file=sys.stderr)  # noqa: T201
            return 128 + self._received[0]
        if code > 128 and code - 128 not in ending:
            print(f"a rank or the launcher was ended by signal {code - 128}", file=sys.stderr)  # noqa: T201
        return code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Stop the ranks in order. A second Ctrl-C, or any signal before there are ranks, ends all at once."""
        again = number == signal.SIGINT and time.monotonic() - self._since > ONE_REQUEST_S
        self._since = min(self._since, time.monotonic())
        self._received.append(number)
        ranks = [each for each in _descendants() if self._is_rank(each)]
        for rank in ranks:
            with suppress(psutil.Error):
                rank.send_signal(signal.SIGINT if again else signal.SIGTERM)
        if not ranks and self._remote:
            self._process.terminate()
        elif not ranks:
            self._kill()
        elif again:
            self._kill_at = time.monotonic() + _AT_ONCE_S

    def _kill(self) -> None:
        self._kill_at, self._killed = math.inf, True
        for each in _descendants():
            with suppress(psutil.Error):
                each.kill()

    def _remaining(self) -> bool:
        """Return whether processes of a launcher that was killed are left, and record the exit codes of the others."""
        left = [each for each in _descendants() if self._script in _arguments(each)]
        with suppress(psutil.Error):
            self._adopted.update(each.pid for each in left if each.ppid() == os.getpid())
        for pid in tuple(self._adopted):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._adopted.remove(pid)
                self._codes.append(os.waitstatus_to_exitcode(status))
        return bool(left or self._adopted)  # a process that frees its memory has no arguments any more

    def _is_rank(self, process: psutil.Process) -> bool:
        found = _arguments(process)
        return self._script in found and not any(each.startswith("deepspeed.launcher") for each in found)


def _arguments(process: psutil.Process) -> list[str]:
    """Return the arguments of a process; one that has ended has none."""
    found: list[str] = []
    with suppress(psutil.Error):
        found = process.cmdline()
    return found


def _descendants() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _as_shell(code: int) -> int:
    """Return an exit code as a shell does, 128 plus the number of a signal. The launcher returns 256 minus it."""
    code = code % 256 - 256 if code > 256 - signal.NSIG else code
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
    if hosts.hostfile is not None and not named & {"--no_ssh", "--launcher"} and shutil.which("pdsh") is None:
        raise UserError(
            "--hostfile: the launcher starts other machines through pdsh, which was not found",
            remedy="Install it (apt-get install pdsh), or start the command on each machine with --launcher "
            "'--hostfile FILE --no_ssh --node_rank N --master_addr NAME'.",
        )
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
