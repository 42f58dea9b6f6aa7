"""Signals at random moments of a start-up, from the first one that the command handles."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.chaos.runs import Configuration, Runs, ended, processes, survivors
from tests.chaos.surroundings import Row, row, trained
from tests.support.launches import Process, handles

CODES = {"INT": 130, "TERM": 143, "HUP": 129, "QUIT": 131}
LATEST = 0.5
"""The latest moment, as a fraction of the time from the start of the command to the summary of its run."""


def interrupted_starts(runs: Runs, folder: Path, draw: random.Random, starts: int) -> Iterator[Row]:
    """Interrupt starts in one run directory, and train there at last. Return a row of the report for each."""
    configuration, run_dir = Configuration(), folder / "starts"
    latest = LATEST * start_up(runs, configuration, folder / "undisturbed") if starts else 0.0
    for _ in range(starts):
        name, target = draw.choice(sorted(CODES)), draw.choice(("command", "group"))
        seconds = draw.uniform(0.0, latest)
        problems = interrupted_start(runs, configuration, run_dir, getattr(signal, f"SIG{name}"), target, seconds)
        yield row(f"{name} to {target} {seconds:.2f} s after the start", configuration, problems)
    if starts:
        finished = trained(runs, configuration, run_dir)
        yield row("start after these", configuration, list(runs.differences(configuration, finished)))


def start_up(runs: Runs, configuration: Configuration, run_dir: Path) -> float:
    """Start `mcframe run`, end it once it prints its summary, and return the seconds until then."""
    began, printed = time.monotonic(), list[float]()

    def watch(line: str, process: Process) -> None:
        if "run directory" in line and not printed:
            printed.append(time.monotonic())
            os.killpg(process.pid, signal.SIGTERM)

    result = ended(runs.start(configuration, run_dir, launched=True), run_dir, watch)
    assert printed, result.output
    return printed[0] - began


def interrupted_start(
    runs: Runs, configuration: Configuration, run_dir: Path, number: signal.Signals, target: str, seconds: float
) -> list[str]:
    """Start `mcframe run`, send a signal, and return what is wrong with the end."""
    process = runs.start(configuration, run_dir, launched=True)
    started: list[psutil.Process] = []
    sender = threading.Thread(target=_send, args=(process, run_dir, number, target, seconds, started))
    sender.start()
    result = ended(process, run_dir)
    sender.join()
    problems = survivors(started, run_dir)
    if result.code != CODES[number.name.removeprefix("SIG")]:
        problems.append(f"exit code {result.code}")
    lines = result.output.splitlines()
    if "Traceback" in result.output or lines.count("interrupted") != 1 or lines[-1] != "interrupted":
        problems.append(f"expected one line, got: {result.output[-3000:]}")
    problems += [f"{path} was left" for path in run_dir.rglob("*") if path.is_file()]
    return problems


def _send(
    process: Process, run_dir: Path, number: int, target: str, seconds: float, started: list[psutil.Process]
) -> None:
    at = time.monotonic() + seconds
    while time.monotonic() < at or not handles(process.pid, signal.SIGTERM):  # Python itself starts until then
        time.sleep(0.01)
    started += processes(process, run_dir)
    (os.killpg if target == "group" else os.kill)(process.pid, number)
