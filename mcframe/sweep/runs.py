"""Commands that train and evaluate planned runs, as a user would type them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mcframe
from mcframe.sweep.grid import Grid
from mcframe.sweep.jobs import Job, Launch, Ports
from mcframe.sweep.plan import PlannedRun
from mcframe.sweep.results import EVALUATION

LOG = "log.txt"
_REQUEST = "request.json"
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(grid: Grid) -> dict[str, str]:
    """Return the environment of a run: this process's, without the variables of a rank."""
    inherited = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    return {"COLUMNS": "160", **inherited, "OMP_NUM_THREADS": str(grid.threads), "PYTHONUNBUFFERED": "1"}


def jobs_of(grid: Grid, planned: Sequence[PlannedRun], out: Path) -> list[Job]:
    """Return the trainings that are not finished and the missing evaluations, in the order in which they may start."""
    ports, trainings = Ports(), dict[Path, Job]()
    for run in _starts_first(planned):
        if run.progress != "finished":
            start = None if run.row.start is None else out / run.row.start / run.directory.name
            after = [trainings[start]] if start in trainings else []
            trainings[run.directory] = Job(
                run.name, partial(_training, grid, run, ports), run.directory / LOG, partial(_finished, run), after
            )  # fmt: skip
    evaluations = [_evaluation(grid, run, out, trainings) for run in planned if grid.evaluates(run.row)]
    return [*trainings.values(), *(job for job in evaluations if job is not None)]


def _starts_first(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs in an order in which a run that starts from another's weights is after that other."""
    ordered: list[PlannedRun] = []
    placed: set[str] = set()
    waiting = list(planned)
    while waiting:
        ready = [run for run in waiting if run.row.start is None or run.row.start in placed]
        ordered += ready
        placed |= {run.row.name for run in ready}
        waiting = [run for run in waiting if run not in ready]
    return ordered


def _finished(run: PlannedRun) -> bool:
    return run.progress == "finished"


def _training(grid: Grid, run: PlannedRun, ports: Ports) -> Launch:
    command, variables, port = [sys.executable], dict[str, str](), str(ports.next())
    if grid.ranks == 1:
        # mcframe/run.py is a group of one rank. The launcher would kill a run that saves for more than 30 s.
        variables["MASTER_PORT"] = port
    else:
        command += ["-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(grid.ranks)]
        command += ["--master_port", port]
    command += [str(Path(mcframe.__file__).with_name("run.py"))]
    for file in grid.gin:
        command += ["--gin", file]
    command += ["--run-dir", str(run.directory), "--resume", "auto"]
    for binding in run.bindings:
        command += ["--set", binding]
    for plugin in run.plugins.named:
        command += ["--plugin", plugin]
    for name in run.plugins.without:
        command += ["--no-plugin", name]
    return command, variables


def _evaluation(grid: Grid, run: PlannedRun, out: Path, trainings: Mapping[Path, Job]) -> Job | None:
    """Return the job that evaluates this run after its training and that of the runs in its options; None if done."""
    options = [option.replace("{out}", str(out)).replace("{seed}", str(run.seed)) for option in grid.evaluate or ()]
    request = {"options": options, "tokens": run.tokens}
    answer, record = run.directory / EVALUATION, (run.directory / EVALUATION).with_name(_REQUEST)
    needed = [run.directory, *map(Path, options)]
    after = [trainings[folder] for folder in needed if folder in trainings]
    if not after and answer.exists() and _read(record) == request:
        return None

    def launch() -> Launch:
        record.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
        command = [sys.executable, "-c", "from mcframe.cli.app import main; main()", "eval", str(run.directory)]
        return [*command, *options, "--out", str(answer.parent)], {}

    def succeeded() -> bool:
        if not answer.exists():
            return False
        record.write_text(json.dumps(request) + "\n", "utf-8")
        return True

    return Job(f"{run.name} evaluation", launch, run.directory / LOG, succeeded, after)


def _read(record: Path) -> Any:
    try:
        return json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return None
