"""Signals that end a process, and what a rank is above: what reaches the processes above a rank must reach the rank."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from mcframe.errors import ONE_REQUEST_S, Interrupt, raise_interrupt

PARENTS = "MCFRAME_PARENTS"
"""Environment variable with the mcframe commands above a process: HOST:PID, separated by commas."""

_LAUNCHERS = ("deepspeed", "torchrun")
_POLL_S = 0.5
_STUCK_S = 5.0
"""Seconds after which a signal ends a rank whose start-up cannot handle it."""

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a run. SIGHUP is not one of them under `nohup`, which ignores it."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
    return ending if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*ending, signal.SIGHUP)


def handle_ending_signals(handler: Handler) -> dict[signal.Signals, Any]:
    """Install a handler for every ending signal, deliver those that were blocked, and return the former handlers."""
    ending = ending_signals()
    before = {number: signal.signal(number, handler) for number in ending}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
    return before


def raise_again(failure: sys.UnraisableHookArgs) -> None:
    """Send the signal again whose exception Python has dropped, in a destructor or callback: a `sys.unraisablehook`."""
    if isinstance(failure.exc_value, Interrupt):
        threading.Timer(ONE_REQUEST_S, os.kill, (os.getpid(), failure.exc_value.number)).start()
    else:
        sys.__unraisablehook__(failure)


def as_parent(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of processes that must not outlive this one."""
    above = environment.get(PARENTS, "")
    return {**environment, PARENTS: f"{above},{_host()}:{os.getpid()}".lstrip(",")}


class ParentWatch(threading.Thread):
    """Send SIGTERM to this rank once a launcher or command above it has ended, or has received an ending signal.

    `mcframe run` blocks the ending signals of its launcher, which would kill ranks after 30 s; they remain pending. The
    watch also ends a start-up that does not handle a signal.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="mcframe parent watch")
        launchers = [each for each in psutil.Process().parents() if _is_launcher(each)]
        self._launchers: list[psutil.Process | None] = list(launchers)
        if not launchers and any(each.startswith("--local_rank") for each in sys.argv[1:]):
            self._launchers.append(None)  # the launcher that passed the option has ended already
        self._commands = [_process(int(pid)) for pid in _pids(os.environ.get(PARENTS, ""))]
        if self._commands and launchers and not any(map(_is_runner, launchers)):
            self._launchers.append(None)  # killed before this rank started: a command starts no launcher without it
        self._mask = sum(1 << number - 1 for number in ending_signals())
        self._received, writer = os.pipe()
        for end in (self._received, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def run(self) -> None:
        """Look until there is a reason to stop, and stop."""
        signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())  # for the main thread alone
        stopping = False
        while True:
            if not stopping and (stopping := self.look()):
                os.kill(os.getpid(), signal.SIGTERM)
            if select.select([self._received], [], [], _POLL_S)[0]:
                received = set(os.read(self._received, 4096)) & set(ending_signals())
                time.sleep(_STUCK_S if received else 0)
                # Nothing to save yet: the main thread may wait for a rank that has ended, where it handles no signal.
                if received and signal.getsignal(signal.SIGTERM) is raise_interrupt:
                    if os.environ.get("RANK", "0") == "0":
                        os.write(2, b"interrupted\n")
                    os._exit(128 + min(received))

    def look(self) -> bool:
        """Return whether this rank must stop."""
        above = [*self._launchers, *self._commands]
        return not all(map(_lives, above)) or any(each and _pending(each.pid) & self._mask for each in self._launchers)


def _host() -> str:
    """Return a name of the processes that this one can see."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}".replace(":", " ")
    return socket.gethostname()


def _pids(parents: str) -> Sequence[str]:
    here = _host()
    entries = [entry.rpartition(":") for entry in parents.split(",") if entry]
    return [pid for host, _, pid in entries if host == here]


def _process(pid: int) -> psutil.Process | None:
    with suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _is_runner(process: psutil.Process) -> bool:
    """Return whether a launcher is not the one that DeepSpeed's runner starts on each machine."""
    with suppress(psutil.Error):
        return "deepspeed.launcher.launch" not in process.cmdline()[:4]
    return False


def _is_launcher(process: psutil.Process) -> bool:
    """Return whether a process is DeepSpeed's or torch's launcher, by its interpreter's script or module."""
    with suppress(psutil.Error):
        return any(
            Path(part).name in _LAUNCHERS or part.startswith(("deepspeed.launcher", "torch.distributed"))
            for part in process.cmdline()[:4]
        )
    return False


def _lives(process: psutil.Process | None) -> bool:
    """Return whether a process has not ended; a zombie has."""
    with suppress(psutil.Error):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _pending(pid: int) -> int:
    """Return the set of signals that a process has received and blocks, as a mask; Linux only."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
        return sum(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:"))
    return 0
