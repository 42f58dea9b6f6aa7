"""Real runs for tests, and folders of third-party packages that they can import."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock

from mcframe.metrics.catalogue import OF_THE_MACHINE
from tests.support.forked_ranks import ForkedRanks

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "mcframe" / "run.py"
SMOKE = ROOT / "gin" / "smoke.gin"
TIMEOUT_S = 300.0
STEP = 512
"""Tokens of a step of the runs of several files of tests."""
EVERY_STEP = (
    f"run.batch_tokens = {STEP}", f"logging.every = {STEP}", f"checkpoint.every = {STEP}", "validation.every = 0",
    "validation.windows = 4",
)  # fmt: skip
FOUR_STEPS = (*EVERY_STEP, "checkpoint.keep = 9", f"run.total_tokens = {4 * STEP}")

Process: TypeAlias = "subprocess.Popen[str] | ForkedRanks"


@dataclass(frozen=True)
class Result:
    """Exit code, output and run directory of a process that has ended."""

    code: int
    output: str
    run_dir: Path

    @cached_property
    def text(self) -> str:
        """The output in one line, without frames."""
        return " ".join(re.sub(r"[│╭╮╰╯─┌┐└┘]", " ", self.output).split())

    @property
    def errors(self) -> int:
        """Number of error messages in the output."""
        return self.output.count("╭─")

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """Tokens -> the metrics in metrics.jsonl, without wall-clock figures."""
        found: dict[int, dict[str, float]] = {}
        for line in (self.run_dir / "metrics.jsonl").read_text("utf-8").splitlines():
            entry = json.loads(line)
            kept = self.compared(entry)
            if kept.keys() - {"tokens", "step"}:
                found.setdefault(entry["tokens"], {}).update(kept)
        return found

    @staticmethod
    def compared(figures: Mapping[str, float]) -> dict[str, float]:
        """Return the figures that two runs of the same settings have in common: all but wall-clock figures."""
        return {name: value for name, value in figures.items() if not name.endswith(OF_THE_MACHINE)}

    def curve(self, name: str) -> list[float]:
        """Return the values of a metric in the order of tokens."""
        return [entry[name] for _, entry in sorted(self.metrics.items()) if name in entry]

    @property
    def summary(self) -> dict[str, object]:
        return json.loads((self.run_dir / "summary.json").read_text("utf-8"))

    @property
    def checkpoints(self) -> list[int]:
        """The tokens of the complete checkpoints."""
        return sorted(int(path.name.removeprefix("tokens-")) for path in self.run_dir.glob("checkpoints/tokens-*"))

    def succeeded(self) -> Result:
        assert self.code == 0, self.output[-6000:]
        return self


@dataclass
class Launches:
    """Starts processes in the checkout and waits for them.

    Attributes:
        folder: Of all runs of this session; all workers of pytest-xdist use it.
        environment: Variables of every process.
    """

    folder: Path
    environment: dict[str, str]
    script: str = str(SCRIPT)

    def port(self) -> str:
        """Return a free port for the ranks of a run."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return str(probe.getsockname()[1])

    def shared(self, *settings: str, **options: object) -> Result:
        """Return the same run to every test with these settings. No test may change its folder."""
        key = repr((settings, sorted(options.items())))
        file = self.folder / f"shared-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                result = self.run(*settings, **options)  # type: ignore[arg-type]
                file.write_text(json.dumps([result.code, result.output, str(result.run_dir)]), "utf-8")
        code, output, run_dir = json.loads(file.read_text("utf-8"))
        return Result(code, output, Path(run_dir))

    def run(
        self,
        *settings: str,
        gin: Path = SMOKE,
        ranks: int = 1,
        launcher: bool = False,
        run_dir: Path | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        watch: Callable[[str, Process], None] | None = None,
    ) -> Result:
        """Train.

        Args:
            settings: Bindings for --set.
            launcher: Start `mcframe/run.py` through the `deepspeed` launcher; otherwise fork the ranks.
            options: Further options of `mcframe/run.py`.
            environment: Variables of this run alone.
            watch: Called with every line of output and the process.
        """
        run_dir = run_dir or self.folder / f"run-{os.getpid()}-{time.monotonic_ns()}"
        arguments = ["--gin", str(gin), "--run-dir", str(run_dir), *options]
        for setting in settings:
            arguments += ["--set", setting]
        if not launcher and _forks():
            process = ForkedRanks(arguments, {**self.environment, **(environment or {})}, ranks, self.port())
            return outcome(process, run_dir, watch)
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
        command += ["--master_port", self.port(), self.script, *arguments]
        return self.execute(command, run_dir=run_dir, environment=environment, watch=watch)

    def command(
        self, *arguments: str, run_dir: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Result:
        """Return the result of `mcframe ARGUMENTS`, which takes no start of an interpreter where it can be forked."""
        if _forks():
            process = ForkedRanks(arguments, {**self.environment, **(environment or {})}, 0, "")
            return outcome(process, run_dir or Path(), None)
        command = [sys.executable, "-m", "mcframe", *arguments]
        return self.execute(command, run_dir=run_dir, environment=environment)

    def execute(
        self,
        command: Sequence[str],
        *,
        run_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        watch: Callable[[str, Process], None] | None = None,
    ) -> Result:
        """Execute a command in a process group of its own, as a terminal would, and wait for the complete group."""
        process = popen(command, {**self.environment, **(environment or {})}, cwd)
        return outcome(process, run_dir or Path(), watch)


def _forks() -> bool:
    """Return whether ranks can be forked: a forked process cannot use a GPU."""
    import torch  # not at the start: the process that only distributes the tests imports this module

    return not torch.cuda.is_available()


def clean_environment(folder: Path) -> dict[str, str]:
    """Return variables of runs with a token cache in a folder and without the user's settings."""
    dropped = ("WANDB_", "MCFRAME_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "PYTHONPATH", "DS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return environment | {
        "MCFRAME_CACHE": str(folder / "cache"),
        "NETRC": str(folder / "netrc"),
        "WANDB_CONFIG_DIR": str(folder / "wandb"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "400",  # frames as wide as their longest line, so that a message can be searched for
        "PYTHONUNBUFFERED": "1",
    }


def handles(pid: int, number: int) -> bool:
    """Return whether a process has a handler of a signal; Python itself has none of SIGTERM."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


def popen(command: Sequence[str], environment: Mapping[str, str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, with a pipe for all of its output."""
    return subprocess.Popen(
        list(command),
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def outcome(process: Process, run_dir: Path, watch: Callable[[str, Process], None] | None) -> Result:
    """Read the output until every process that writes to it has ended; kill them after TIMEOUT_S."""
    passed = threading.Event()

    def kill() -> None:
        passed.set()
        process.kill() if isinstance(process, ForkedRanks) else os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(TIMEOUT_S, kill)
    timer.start()
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if watch is not None:
                watch(line, process)
        process.wait()
    finally:
        timer.cancel()
        process.stdout.close()
    output = "".join(lines)
    assert not passed.is_set(), f"not done after {TIMEOUT_S} s:\n{output[-6000:]}"
    assert process.returncode is not None
    return Result(process.returncode, output, run_dir)


class Site:
    """A folder for PYTHONPATH that holds packages as pip leaves them: a module and its entry point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, source: str) -> None:
        """Write a plug-in package of one module."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{package}.py").write_text(textwrap.dedent(source), "utf-8")
        info = self.folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[mcframe.plugins]\nit = {package}\n", "utf-8")

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder)}
