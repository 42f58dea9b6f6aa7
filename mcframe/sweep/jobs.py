"""Commands run side by side, each in a process group of its own, until all are done or somebody asks to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["waiting", "running", "done", "failed", "interrupted", "left out"]
Launch = tuple[Sequence[str], Mapping[str, str]]
_POLL_S = 0.2
_GRACE_S = 60.0
"""How long what a launcher has left behind may go on: its ranks may still save."""


@dataclass
class Job:
    """One command.

    launch    gives the command and what its environment has on top, when its turn comes
    log       where its output goes, behind what is there
    succeeded whether it did what it was for: a launcher's exit code does not tell
    after     jobs that must be done first; where one is not, this one is left out
    """

    name: str
    launch: Callable[[], Launch]
    log: Path
    succeeded: Callable[[], bool]
    after: Sequence[Job] = ()
    state: State = "waiting"
    started: float = 0.0
    ended: float = 0.0
    left: float = 0.0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """How long it ran, or has been running."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0


class Jobs:
    """Runs jobs, `abreast` at a time, in their order as far as they do not wait for each other."""

    def __init__(
        self, jobs: Sequence[Job], *, abreast: int, environment: Mapping[str, str], changed: Callable[[Job], None]
    ) -> None:
        self._jobs, self._abreast, self._environment, self._changed = jobs, abreast, environment, changed
        self._asked = 0

    @property
    def stopped(self) -> bool:
        """Whether somebody has asked to stop."""
        return self._asked > 0

    def run(self, watch: Callable[[], None]) -> None:
        """Run them all; `watch` is called a few times a second. Ctrl-C and SIGTERM stop gently, twice at once."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._advance():
                watch()
                time.sleep(_POLL_S)
        finally:
            self._kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        watch()

    def _ask(self, number: int, frame: object) -> None:
        """Ask what runs to save and end. Its processes are in groups of their own, which a Ctrl-C does not reach."""
        self._asked += 1
        for job in self._running():
            _signal(job, signal.SIGINT)

    def _advance(self) -> bool:
        """See who is done, start who may. Returns whether anything runs or waits."""
        for job in self._running():
            if _over(job):
                self._end(job, "done" if job.succeeded() else "interrupted" if self._asked else "failed")
        for job in self._jobs:
            if job.state == "waiting":
                self._consider(job)
        return any(job.state in ("running", "waiting") for job in self._jobs)

    def _consider(self, job: Job) -> None:
        if self._asked:
            self._end(job, "interrupted")
        elif any(other.state not in ("waiting", "running", "done") for other in job.after):
            self._end(job, "left out")
        elif all(other.state == "done" for other in job.after) and len(self._running()) < self._abreast:
            self._start(job)

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        command, variables = job.launch()
        with job.log.open("ab") as log:
            job.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**self._environment, **variables}, start_new_session=True,
            )  # fmt: skip
        job.state, job.started = "running", time.monotonic()
        self._changed(job)

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended = state, time.monotonic()
        self._changed(job)

    def _running(self) -> list[Job]:
        return [job for job in self._jobs if job.state == "running"]

    def _kill(self) -> None:
        """Whatever still runs when this ends by an error must not be left behind."""
        for job in self._running():
            _signal(job, signal.SIGKILL)


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that say something."""
    if not log.exists():
        return []
    # A progress line overwrites itself with carriage returns.
    text = log.read_text("utf-8", errors="replace").replace("\r", "\n")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def _signal(job: Job, number: signal.Signals) -> None:
    if job.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, number)


def _over(job: Job) -> bool:
    """Whether its process has ended, and what that one started with it; what outstays the grace is killed."""
    if job.process is None or job.process.poll() is None:
        return False
    try:
        os.killpg(job.process.pid, 0)
    except ProcessLookupError:
        return True
    job.left = job.left or time.monotonic()
    if time.monotonic() - job.left < _GRACE_S:
        return False
    _signal(job, signal.SIGKILL)
    return True


class Ports:
    """Ports for process groups that start at nearly the same time: free, and none given twice."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def next(self) -> int:
        """A port that nobody listens on and that this has not given before."""
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self._given:
                self._given.add(port)
                return port
