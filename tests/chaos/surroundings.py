"""Disturbances of what surrounds a run: a full disk, and a rank that is stopped."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.chaos.runs import Configuration, Runs, damage, ended, processes, survivors
from tests.support.launches import Process, Result

Row = dict[str, object]


def full_disk(runs: Runs, folder: Path) -> Iterator[Row]:
    """Train on a tmpfs with room for the first checkpoints, enlarge it, and resume."""
    mount, configuration = folder / "tmpfs", Configuration()
    with tmpfs(mount, "8m") as refused:
        if refused:
            yield row("full tmpfs", configuration, skipped=refused)
            return
        stopped = trained(runs, configuration, mount / "run")
        problems = [] if stopped.code == 2 and "no space left" in stopped.text else [stopped.output[-3000:]]
        problems += damage(stopped.run_dir)
        subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
        problems += runs.differences(configuration, trained(runs, configuration, mount / "run"))
        yield row("full tmpfs", configuration, problems)


def full_loggers(runs: Runs, folder: Path) -> Iterator[Row]:
    """Train with tmpfs for the folders of loggers, which fill up during the run."""
    configuration = Configuration()
    for name in ("tensorboard", "wandb"):
        run_dir = folder / f"full-{name}"
        with tmpfs(run_dir / name, "32k") as refused:
            if refused:
                yield row(f"full {name}", configuration, skipped=refused)
                continue
            result = trained(runs, configuration, run_dir, ("logging.wandb = 'offline'",))
            problems = list(runs.differences(configuration, result))
            if f"{name} failed, and the run continues" not in result.text.lower():
                problems.append(f"no warning names {name}: {result.output[-3000:]}")
            yield row(f"full {name}", configuration, problems)


@contextmanager
def tmpfs(mount: Path, size: str) -> Iterator[str]:
    """Mount a tmpfs during the block. Yield why it cannot be mounted, or nothing."""
    mount.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    try:
        yield mounted.stderr.strip() if mounted.returncode else ""
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", mount], check=True)


def read_only(runs: Runs, folder: Path) -> Iterator[Row]:
    """Forbid new files in the run directory after the third step (open files remain), allow them, and resume."""
    configuration, run_dir = Configuration(), folder / "read-only"
    found: list[subprocess.CompletedProcess[str]] = []
    steps = 0

    def watch(line: str, process: Process) -> None:
        nonlocal steps
        steps += re.search(r"loss.*ETA", line) is not None
        if steps == 3 and not found:
            command = ["chattr", "+i", str(run_dir), str(run_dir / "checkpoints")]
            found.append(subprocess.run(command, capture_output=True, text=True))

    try:
        stopped = trained(runs, configuration, run_dir, watch=watch)
    finally:
        subprocess.run(["chattr", "-i", str(run_dir), str(run_dir / "checkpoints")], capture_output=True)
    if not found or found[0].returncode:
        yield row(
            "read-only run directory", configuration, skipped=f"chattr fails: {found and found[0].stderr.strip()}"
        )
        return
    expected = stopped.code == 2 and "cannot be written" in stopped.text and "Traceback" not in stopped.text
    problems = [*damage(run_dir)] if expected else [stopped.output[-3000:]]
    problems += runs.differences(configuration, trained(runs, configuration, run_dir))
    yield row("read-only run directory", configuration, problems)


def stopped_rank(runs: Runs, folder: Path) -> Iterator[Row]:
    """Stop a rank for a moment; then stop it until the other has ended, continue it, and resume the run."""
    configuration = Configuration(ranks=2, stage=1)
    for name, seconds, limit in (("rank stopped for 1 s", 1.0, 60), ("rank stopped until the other ends", 20.0, 4)):
        run_dir, settings = folder / f"stopped-{limit}", (f"run.stall_seconds = {limit}",)
        stopper = Stopper(seconds)
        result = trained(runs, configuration, run_dir, settings, stopper.watch)
        problems = damage(run_dir)
        if seconds > limit:
            if result.code != 2 or "rank 1 of 2 stopped: no sign of life" not in result.text:
                problems.append(result.output[-3000:])
            problems += survivors(stopper.started, run_dir)
            result = trained(runs, configuration, run_dir, settings)
        yield row(name, configuration, [*problems, *runs.differences(configuration, result)])


class Stopper:
    """Stops rank 1 after the third step, and continues it.

    Args:
        seconds: From one to the other.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._steps = seconds, 0
        self.started: list[psutil.Process] = []

    def watch(self, line: str, process: Process) -> None:
        """Count the steps."""
        self._steps += re.search(r"loss.*ETA", line) is not None
        if self._steps == 3 and not self.started:
            self.started = processes(process, Path())
            self.started[1].suspend()
            threading.Timer(self._seconds, self._resume).start()

    def _resume(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.started[1].resume()


def trained(
    runs: Runs,
    configuration: Configuration,
    run_dir: Path,
    settings: tuple[str, ...] = (),
    watch: Callable[[str, Process], None] | None = None,
) -> Result:
    """Train to the end, or until the run ends by itself."""
    return ended(runs.start(configuration, run_dir, launched=False, settings=settings), run_dir, watch)


def row(name: str, configuration: Configuration, problems: Sequence[str] = (), skipped: str = "") -> Row:
    """Return a row of the report."""
    result = {"resumed": not problems, "equal": not problems, "problems": list(problems)}
    return {
        "disturbance": f"{name} (skipped: {skipped})" if skipped else name,
        "configuration": str(configuration),
        **result,
    }


SURROUNDINGS = (full_disk, full_loggers, read_only, stopped_rank)
