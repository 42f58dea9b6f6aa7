"""Real trainings for the slow checks and the matrix, under DeepSpeed's launcher.

Trainings that are asked for together share one start of the launcher, and what has been trained once in this process is
not trained again: a run serves every clause that looks at it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from mcframe.metrics.catalogue import OF_THE_MACHINE
from mcframe.training.checkpoints import find
from mcframe.training.engine import free_port
from mcframe.training.run_directory import METRICS, OPERATIVE
from mcframe.training.weights import load_weights

PATIENCE_S = 300.0
"""How long one training may take, the start of its processes and the build of DeepSpeed's op included."""

STEP_TOKENS = 1024
"""Tokens of an optimizer step of `gin/smoke.gin`."""

SHORT = (
    "validation.every = 0", "sampling.every = 0", "validation.windows = 4",
    "logging.tensorboard = False", "logging.wandb = 'disabled'", f"logging.every = {STEP_TOKENS}",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """A short run of `smoke.gin`.

    settings  bindings on top of the preset
    plugins   plug-ins that are not installed, as `--plugin` names them
    steps     optimizer steps; a checkpoint is kept after half of them and at the end
    ranks     processes
    resumes   goes on from the checkpoint in the middle of another training
    """

    settings: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    steps: int = 4
    ranks: int = 1
    resumes: Training | None = None

    @property
    def folder(self) -> Path:
        """Where it writes, in a folder that goes away with this process."""
        return _home() / hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def arguments(self) -> list[str]:
        """The options of `mcframe/run.py`."""
        half = max(1, self.steps // 2) * STEP_TOKENS
        cadence = (f"run.total_tokens = {self.steps * STEP_TOKENS}", f"checkpoint.every = {half}")
        given = ["--gin", "smoke.gin", "--run-dir", str(self.folder / "run")]
        if self.resumes is not None:
            given += ["--resume", str(self.resumes.folder / "run" / "checkpoints" / f"tokens-{half:015d}")]
        for plugin in self.plugins:
            given += ["--plugin", str(Path(plugin).resolve()) if Path(plugin).is_file() else plugin]
        for setting in (*SHORT, *cadence, *self.settings):
            given += ["--set", setting]
        return given


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    code     the worst exit code of a rank; None where it did not end in time
    seconds  of the training alone, without the start of its processes
    error    what was raised on a rank; empty where nobody knows
    """

    folder: Path
    code: int | None
    seconds: float
    error: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether every rank finished."""
        return self.code == 0

    @cached_property
    def log(self) -> str:
        """What its ranks printed, frames and line breaks taken out."""
        texts = [file.read_text("utf-8", errors="replace") for file in sorted(self.folder.glob("log-*.txt"))]
        return " ".join(re.sub(r"[│╭╮╰╯─┌┐└┘]", " ", "\n".join(texts)).split())

    @property
    def why(self) -> str:
        """Why it failed, as far as its log says; the end of it."""
        how = f"is not done after {PATIENCE_S:.0f} s" if self.code is None else f"ended with code {self.code}"
        return f"it {how}: {self.error or '...' + self.log[-1500:]}"

    @cached_property
    def metrics(self) -> dict[int, dict[str, float]]:
        """What was logged, by tokens, without figures of the clock on the wall."""
        found: dict[int, dict[str, float]] = {}
        for line in (self.folder / "run" / METRICS).read_text("utf-8").splitlines():
            entry = json.loads(line)
            kept = {name: value for name, value in entry.items() if not name.endswith(OF_THE_MACHINE)}
            found.setdefault(entry["tokens"], {}).update(kept)
        return found

    def curve(self, name: str) -> list[float]:
        """One metric, in the order of tokens."""
        return [entry[name] for _, entry in sorted(self.metrics.items()) if name in entry]

    @property
    def last_loss(self) -> float | None:
        """Of the last step that was logged; None where none was."""
        logged = self.curve("train/loss") if (self.folder / "run" / METRICS).exists() else []
        return logged[-1] if logged else None

    def chose(self, name: str) -> bool:
        """Whether its operative configuration names this plug-in, `kind.name`, and not one whose name begins alike."""
        return re.search(rf"@{re.escape(name)}(?![\w.])", self.operative) is not None

    @property
    def operative(self) -> str:
        """The configuration that was really used."""
        return (self.folder / "run" / OPERATIVE).read_text("utf-8")

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor, at its end."""
        return load_weights(find(self.folder / "run"))

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """What each rank decided afterwards; see `mcframe.cli.train_many.decisions`."""
        return [json.loads(file.read_text("utf-8")) for file in sorted(self.folder.glob("decisions-*.json"))]


_TRAINED: dict[Training, Trained] = {}
_STOPPED = threading.Event()


class Stopped(Exception):
    """Somebody asked for an end while a training was going on."""


def stop() -> None:
    """End the training that another thread of this process waits for; it raises Stopped there, and so will all others.

    The processes that train have a session of their own, so that no Ctrl-C of a terminal reaches them.
    """
    _STOPPED.set()


def trained(
    *trainings: Training, progress: Callable[[Training, Trained], None] = lambda training, result: None
) -> list[Trained]:
    """Train what has not been trained in this process yet, and return what came of each.

    progress  is told of each training when it has ended

    Raises Stopped where `stop` is called.
    """
    new = [each for each in dict.fromkeys(trainings) if each not in _TRAINED]
    for ranks in sorted({each.ranks for each in new}):
        waiting = [each for each in new if each.ranks == ranks]
        while waiting := [each for each in waiting if each not in _TRAINED]:
            _start(waiting, ranks, progress)  # a training that fails takes its processes with it
            for each in waiting:
                if each.resumes in _TRAINED and not _TRAINED[each.resumes].succeeded:
                    _TRAINED[each] = Trained(each.folder, 1, 0.0, "the run that it goes on from failed")
                    progress(each, _TRAINED[each])
    return [_TRAINED[each] for each in trainings]


def _start(waiting: Sequence[Training], ranks: int, progress: Callable[[Training, Trained], None]) -> None:
    """One start of the launcher: trains until all is done, or one fails or takes too long."""
    file = _home() / "jobs.json"
    jobs = [{"folder": str(each.folder), "arguments": each.arguments} for each in waiting]
    file.write_text(json.dumps(jobs), "utf-8")
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(ranks)]
    command += ["--master_port", str(free_port()), "--module", "mcframe.cli.train_many", str(file)]
    with (_home() / "launcher.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
        hung = True
        try:
            for each in waiting:
                _TRAINED[each] = result = _await(each, process)
                progress(each, result)
                if not result.succeeded:
                    break
            hung = result.code is None
        finally:  # nobody who asks for an end waits for what goes on
            _end(process, hung=hung)


def _await(training: Training, process: subprocess.Popen[bytes]) -> Trained:
    """Wait until every rank has written a result, one has failed, the processes are gone, or patience is at its end."""
    deadline, code, ended = time.monotonic() + PATIENCE_S, None, False
    while code is None and time.monotonic() < deadline:
        if _STOPPED.wait(0.05):
            raise Stopped
        ended = process.poll() is not None
        found = [json.loads(file.read_text("utf-8")) for file in training.folder.glob("result-*.json")]
        worst = max((each["code"] for each in found), default=0)
        if worst or len(found) == training.ranks:
            code = worst
        elif ended:
            code = process.returncode or 1
    seconds = max((each["seconds"] for each in found), default=0.0)
    errors = [each["error"] for each in found if each["error"]]
    return Trained(training.folder, code, seconds, errors[0] if errors else "")


def _end(process: subprocess.Popen[bytes], *, hung: bool) -> None:
    """The launcher has a moment to end by itself; then it goes with all of its ranks."""
    try:
        process.wait(timeout=0 if hung else 20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """This process's own, without what belongs to a group of ranks that it may be in."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    # Models are too small for a second thread, and ranks share the cores. Frames as wide as their longest line.
    return {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "400", **environment}


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mcframe-trainings-", ignore_cleanup_errors=True)


def _home() -> Path:
    return Path(_folder().name)
