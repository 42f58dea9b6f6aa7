"""Run commands side by side, each in a process group of its own, until all are done or a signal stops them."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mcframe.ending_signals import as_parent, handle_ending_signals
from mcframe.errors import ONE_REQUEST_S

State = Literal["waiting", "running", "done", "failed", "interrupted", "skipped"]
Launch = tuple[Sequence[str], Mapping[str, str]]
_POLL_S = 0.2
_GRACE_S = 60.0
"""Time in seconds for the processes of a launcher that has ended: its ranks may still save."""


@dataclass
class Job:
    """One command.

    Args:
        name: Its name in the table.
        launch: Returns the command and additional environment variables, when it starts.
        log: The file to which its output is appended.
        succeeded: Returns whether it reached its goal; the exit code of a launcher does not show it.
        after: Jobs that must be done first. If one of them is not done, this job is skipped.
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
        """Return the time since it started, or the time it took."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0


class Jobs:
    """Runs jobs, `parallel` at a time, in their order unless one waits for another.

    Attributes:
        stopped_by: The first signal that stopped the jobs, or 0.
    """

    def __init__(
        self, jobs: Sequence[Job], *, parallel: int, environment: Mapping[str, str], changed: Callable[[Job], None]
    ) -> None:
        self._jobs, self._parallel, self._environment, self._changed = jobs, parallel, environment, changed
        self.stopped_by, self._since = 0, math.inf

    def run(self, watch: Callable[[], None]) -> None:
        """Run all jobs and call `watch` a few times a second.

        A signal stops the jobs gently, a Ctrl-C after it at once. The jobs also stop if this process is killed.
        """
        before = handle_ending_signals(self._interrupt)
        try:
            while self._advance():
                watch()
                time.sleep(_POLL_S)
        finally:
            self._kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        watch()

    def _interrupt(self, number: int, frame: object) -> None:
        """Pass the signal on: the jobs are in process groups of their own, which a Ctrl-C does not reach.

        They receive SIGTERM first, which never counts as a second request where they have received the signal, too.
        """
        again = number == signal.SIGINT and time.monotonic() - self._since > ONE_REQUEST_S
        self._since = min(self._since, time.monotonic())
        self.stopped_by = self.stopped_by or number
        for job in self._running():
            _signal(job, signal.SIGINT if again else signal.SIGTERM)

    def _advance(self) -> bool:
        """End finished jobs and start those that may. Return whether a job runs or waits."""
        for job in self._running():
            if _over(job):
                self._end(job, "done" if job.succeeded() else "interrupted" if self.stopped_by else "failed")
        for job in self._jobs:
            if job.state == "waiting":
                self._consider(job)
        return any(job.state in ("running", "waiting") for job in self._jobs)

    def _consider(self, job: Job) -> None:
        if self.stopped_by:
            self._end(job, "interrupted")
        elif any(other.state not in ("waiting", "running", "done") for other in job.after):
            self._end(job, "skipped")
        elif all(other.state == "done" for other in job.after) and len(self._running()) < self._parallel:
            self._start(job)

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        command, variables = job.launch()
        with job.log.open("ab") as log:
            job.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=as_parent({**self._environment, **variables}), start_new_session=True,
            )  # fmt: skip
        job.state, job.started = "running", time.monotonic()
        self._changed(job)

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended = state, time.monotonic()
        self._changed(job)

    def _running(self) -> list[Job]:
        return [job for job in self._jobs if job.state == "running"]

    def _kill(self) -> None:
        """Kill the jobs that still run, after an error of the caller."""
        for job in self._running():
            _signal(job, signal.SIGKILL)


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not blank."""
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
    """Return whether a job and all processes that it started have ended. After the grace period, kill the rest."""
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
    """Free ports for process groups that start at nearly the same time, each returned once."""

    def __init__(self) -> None:
        self._used: set[int] = set()

    def next(self) -> int:
        """Return a free port that this object has not returned before."""
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self._used:
                self._used.add(port)
                return port
