"""Short real trainings, on several ranks under DeepSpeed's launcher, for slow requirements and the matrix.

Trainings of one call share a start of their ranks, and a training is run once in a process: one run serves every
requirement that reads it.
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

from mcframe.config.run_config import selecting_line
from mcframe.ending_signals import as_parent
from mcframe.environment import free_port
from mcframe.metrics.catalogue import OF_THE_MACHINE
from mcframe.testing.assertions import Skipped
from mcframe.testing.kinds import LIMITED_BY_ZERO
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.training.checkpoint_folder import find
from mcframe.training.run_directory import METRICS, OPERATIVE
from mcframe.training.weights import load_weights

TIMEOUT_S = 300.0
"""Longest duration of one training, with the start of its processes and the build of DeepSpeed's op."""

STEP_TOKENS = 1024
"""Tokens of an optimizer step of `gin/smoke.gin`."""

SHORT = (
    "validation.every = 0", "sampling.every = 0", "validation.windows = 4",
    "logging.tensorboard = False", "logging.wandb = 'disabled'", f"logging.every = {STEP_TOKENS}",
)  # fmt: skip
TOTAL, CHECKPOINT, EVALUATE = "run.total_tokens", "checkpoint.every", "evaluation.every"


@dataclass(frozen=True)
class Training:
    """A short run of `smoke.gin`.

    Attributes:
        settings: Bindings on top of the preset.
        plugins: Plug-ins that are not installed, as `--plugin` names them.
        steps: Optimizer steps. A checkpoint is saved after half of them and at the end.
        ranks: Processes.
        resumes: The training from whose middle checkpoint it resumes.
    """

    settings: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    steps: int = 4
    ranks: int = 1
    resumes: Training | None = None

    @property
    def folder(self) -> Path:
        """Its folder, deleted with this process."""
        return _home() / hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def arguments(self) -> list[str]:
        """The options of `mcframe/run.py`."""
        half = max(1, self.steps // 2) * STEP_TOKENS
        options = ["--gin", "smoke.gin", "--run-dir", str(self.folder / "run")]
        if self.resumes is not None:
            options += ["--resume", str(self.resumes.folder / "run" / "checkpoints" / f"tokens-{half:015d}")]
        for plugin in self.plugins:
            options += ["--plugin", str(Path(plugin).resolve()) if Path(plugin).is_file() else plugin]
        for setting in (*SHORT, f"{TOTAL} = {self.steps * STEP_TOKENS}", f"{CHECKPOINT} = {half}", *self.settings):
            options += ["--set", setting]
        return options


def on_one_rank(plugin: PluginUnderTest) -> list[Training]:
    """Return the runs of a plug-in on one rank: uninterrupted, and resumed from the middle."""
    complete = Training(_settings(plugin), plugin_options(plugin))
    return [complete, Training(complete.settings, complete.plugins, resumes=complete)]


def on_two_ranks(plugin: PluginUnderTest) -> list[Training]:
    """Return the runs of a plug-in on two ranks: one a ZeRO stage that it supports, or one outside training steps."""
    highest = getattr(plugin.entry.factory, "max_zero_stage", 3) if plugin.kind in LIMITED_BY_ZERO else 0
    zero = [(*_settings(plugin), f"deepspeed.zero_stage = {stage}") for stage in range(highest + 1)]
    return [Training(settings, plugin_options(plugin), ranks=2) for settings in zero]


def _settings(plugin: PluginUnderTest) -> tuple[str, ...]:
    often = (f"{EVALUATE} = {2 * STEP_TOKENS}",) if plugin.kind == "evaluation" else ()
    return (selecting_line(plugin.entry), *often, *plugin.bindings)


def plugin_options(plugin: PluginUnderTest) -> tuple[str, ...]:
    """Return the values of `--plugin` with which other processes find the plug-in.

    Raises:
        Skipped: Other processes cannot find it.
    """
    home = plugin.registry.plugins[plugin.entry.plugin]
    if not home.distribution and not home.spec:
        raise Skipped("other processes cannot find it; name its file with --plugin, or install it")
    return tuple(each.spec for each in plugin.registry.plugins.values() if each.spec)


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        folder: Its folder.
        code: The worst exit code of a rank; None after a timeout.
        seconds: Duration of the training without the start of its processes.
        error: The error of a rank, if one was recorded.
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
        """The output of its ranks without frames and line breaks."""
        texts = [file.read_text("utf-8", errors="replace") for file in sorted(self.folder.glob("log-*.txt"))]
        return " ".join(re.sub(r"[│╭╮╰╯─┌┐└┘]", " ", "\n".join(texts)).split())

    @property
    def failure(self) -> str:
        """The reason of its failure: the error, or the end of its output."""
        how = f"is not done after {TIMEOUT_S:.0f} s" if self.code is None else f"ended with code {self.code}"
        return f"it {how}: {self.error or '...' + self.log[-1500:]}"

    @cached_property
    def metrics(self) -> dict[int, dict[str, float]]:
        """The logged metrics by tokens, without wall-clock figures."""
        found: dict[int, dict[str, float]] = {}
        for line in (self.folder / "run" / METRICS).read_text("utf-8").splitlines():
            entry = json.loads(line)
            kept = {name: value for name, value in entry.items() if not name.endswith(OF_THE_MACHINE)}
            found.setdefault(entry["tokens"], {}).update(kept)
        return found

    def curve(self, name: str) -> list[float]:
        """Return one metric in the order of tokens."""
        return [entry[name] for _, entry in sorted(self.metrics.items()) if name in entry]

    @property
    def last_loss(self) -> float | None:
        """Loss of the last logged step; None if no step was logged."""
        logged = self.curve("train/loss") if (self.folder / "run" / METRICS).exists() else []
        return logged[-1] if logged else None

    def chose(self, name: str) -> bool:
        """Return whether the operative configuration names exactly the plug-in `kind.name`."""
        operative = (self.folder / "run" / OPERATIVE).read_text("utf-8")
        return re.search(rf"@{re.escape(name)}(?![\w.])", operative) is not None

    def weights(self) -> dict[str, Tensor]:
        """Return the weights at its end by name."""
        return load_weights(find(self.folder / "run"))

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """The decisions of each rank after the run; see `mcframe.cli.train_many.decisions`."""
        return [json.loads(file.read_text("utf-8")) for file in sorted(self.folder.glob("decisions-*.json"))]


_TRAINED: dict[Training, Trained] = {}
_STOPPED = threading.Event()


class Stopped(Exception):
    """`stop` was called during a training."""


def stop() -> None:
    """Stop the training that another thread of this process waits for, and all later ones, with Stopped.

    Training processes have a session of their own, so that a Ctrl-C of the terminal does not reach them.
    """
    _STOPPED.set()


def trained(
    *trainings: Training, progress: Callable[[Training, Trained], None] = lambda training, result: None
) -> list[Trained]:
    """Train what this process has not trained yet, and return the result of each training.

    Args:
        trainings: The trainings.
        progress: Called with each training that ends.

    Raises:
        Stopped: `stop` was called.
    """
    new = [each for each in dict.fromkeys(trainings) if each not in _TRAINED]
    for ranks in sorted({each.ranks for each in new}):
        while waiting := [each for each in new if each.ranks == ranks and each not in _TRAINED]:
            _start(waiting, ranks, progress)  # a training that fails ends its processes
            for each in waiting:
                if each.resumes in _TRAINED and not _TRAINED[each.resumes].succeeded:
                    _TRAINED[each] = Trained(each.folder, 1, 0.0, "the run that it resumes from failed")
                    progress(each, _TRAINED[each])
    return [_TRAINED[each] for each in trainings]


def _start(waiting: Sequence[Training], ranks: int, progress: Callable[[Training, Trained], None]) -> None:
    """Start the ranks once, and train until all is done, or one training fails or times out."""
    file = _home() / "jobs.json"
    jobs = [{"folder": str(each.folder), "arguments": each.arguments} for each in waiting]
    file.write_text(json.dumps(jobs), "utf-8")
    command = [sys.executable, "-m"]
    if ranks > 1:  # a single rank needs no launcher, whose two processes import DeepSpeed, too
        command += ["deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(ranks)]
        command += ["--master_port", str(free_port()), "--module"]
    command += ["mcframe.cli.train_many", str(file)]
    with (_home() / "launcher.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=as_parent(_environment()), start_new_session=True
        )
        hung = True
        try:
            for each in waiting:
                _TRAINED[each] = result = _await(each, process)
                progress(each, result)
                if not result.succeeded:
                    break
            hung = result.code is None
        finally:
            _end(process, hung=hung)


def _await(training: Training, process: subprocess.Popen[bytes]) -> Trained:
    """Wait until every rank has written a result, one has failed, the processes have ended, or the time is up."""
    deadline, code, ended = time.monotonic() + TIMEOUT_S, None, False
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
    """Wait for the launcher, and kill it with all of its ranks if it does not end."""
    try:
        process.wait(timeout=0 if hung else 20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Return the environment of this process without the variables of a process group."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    # The models are too small for a second thread, and ranks share the cores. Wide columns avoid wrapped messages.
    return {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "400", **environment}


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mcframe-trainings-", ignore_cleanup_errors=True)


def _home() -> Path:
    return Path(_folder().name)
