"""Ranks of a training run, and commands, forked from a process that has imported torch and DeepSpeed.

A rank that the launcher starts spends 8 s of a core on imports, and 3 s on counting FLOPs. A forked rank does neither:
it reports the estimate that a run prints where FLOPs cannot be counted.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.warm_start"])


class ForkedRanks:
    """Processes that train together, with the part of the interface of `subprocess.Popen` that tests use.

    Args:
        arguments: Options of `mcframe/run.py`; without ranks, command and options of `mcframe`.
        environment: Variables of every process.
        ranks: Processes that train. 0: one process, of a command.
        port: Port of the ranks.

    Attributes:
        pid: Process group of rank 0.
        pids: Processes of the ranks.
        stdout: Output of all ranks.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], ranks: int, port: str) -> None:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
        receiver, sender = CONTEXT.Pipe(duplex=False)
        self._lock = threading.Lock()
        self._ranks = []
        for rank in range(max(ranks, 1)):
            own = {**environment, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks else dict(environment)
            process = CONTEXT.Process(target=_train if ranks else _call, args=(list(arguments), own, sender))
            process.start()
            self._ranks.append(process)
        sender.close()
        self.pids = [process.pid for process in self._ranks]
        self.pid = self.pids[0]
        self.stdout = os.fdopen(os.dup(receiver.fileno()), encoding="utf-8")
        receiver.close()

    def poll(self) -> int | None:
        """Return the exit code, the largest one if there are several ranks, or None while one of them runs."""
        with self._lock:  # a second thread that reads the same code would miss it
            codes = [process.exitcode for process in self._ranks]
        if any(code is None for code in codes):
            return None
        return codes[0] if len(codes) == 1 else max(map(abs, codes))

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self) -> None:
        """Return once every rank has ended."""
        while self.poll() is None:
            time.sleep(0.02)

    def kill(self) -> None:
        """End every rank at once."""
        for process in self._ranks:
            process.kill()


def stop_server() -> None:
    """End the process that ranks are forked from, so that its processor time counts as that of this one's children."""
    server = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


def _train(arguments: list[str], environment: dict[str, str], output: Connection) -> None:
    """Do in this process what `python mcframe/run.py ARGUMENTS` does in a new one."""
    from mcframe.cli.train import main
    from mcframe.errors import raise_interrupt
    from mcframe.training.flops import StepFlops

    _become(["mcframe/run.py", *arguments], environment, output)
    signal.signal(signal.SIGINT, raise_interrupt)
    StepFlops._run = uncounted
    code = main(arguments)
    atexit._run_exitfuncs()  # multiprocessing skips them
    sys.exit(code)


def _call(arguments: list[str], environment: dict[str, str], output: Connection) -> None:
    """Do in this process what `mcframe ARGUMENTS` does in a new one."""
    from mcframe.cli.app import main

    _become(["mcframe", *arguments], environment, output)
    try:
        main()
    finally:
        atexit._run_exitfuncs()


def _become(argv: list[str], environment: dict[str, str], output: Connection) -> None:
    """Set session, output, environment, folder and arguments of this process."""
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    sys.stdout, sys.stderr = (open(each, "w", buffering=1, encoding="utf-8", closefd=False) for each in (1, 2))  # noqa: SIM115
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    if "PYTHONPATH" in environment:
        sys.path.insert(0, environment["PYTHONPATH"])
    sys.argv = argv


def uncounted(*_: object) -> float:
    """Replacement of `StepFlops._run`, which takes seconds: the step then has an estimate of its FLOPs."""
    raise NotImplementedError("FLOPs are not counted in tests")
