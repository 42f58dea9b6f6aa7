"""Real runs for tests: the launcher, the script, and what they left behind, on ports of their own.

Two processes of pytest share the work, file by file (`pytest -n 2 --dist loadfile`), so that no process waits for a
run of the other's; what tests of several files ask for is run once for all.
"""

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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from filelock import FileLock

from mcframe.metrics.catalogue import OF_THE_MACHINE

pytest.register_assert_rewrite("tests.support")

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "mcframe" / "run.py"
SMOKE = ROOT / "gin" / "smoke.gin"
TIMEOUT_S = 300.0

# A shell's background jobs ignore Ctrl-C, and so would all that they start: tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

START_RANKS = """
import os, subprocess, sys
port, ranks, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
processes = [subprocess.Popen(command, env={**os.environ, **group, **each}) for each in own]
sys.exit(max(abs(process.wait()) for process in processes))
"""
"""Does what the launcher does on one machine, where it is not the launcher that is tested."""


@dataclass(frozen=True)
class Result:
    """What a process that has ended said, and the run directory it was given."""

    code: int
    output: str
    run_dir: Path

    @cached_property
    def words(self) -> str:
        """The output with frames and line breaks taken out: what a person reads."""
        return " ".join(re.sub(r"[│╭╮╰╯─┌┐└┘]", " ", self.output).split())

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """What metrics.jsonl holds, by tokens, without wall-clock figures."""
        found: dict[int, dict[str, float]] = {}
        for line in (self.run_dir / "metrics.jsonl").read_text("utf-8").splitlines():
            entry = json.loads(line)
            kept = self.compared(entry)
            if kept.keys() - {"tokens", "step"}:
                found.setdefault(entry["tokens"], {}).update(kept)
        return found

    @staticmethod
    def compared(figures: Mapping[str, float]) -> dict[str, float]:
        """Without wall-clock figures."""
        return {name: value for name, value in figures.items() if not name.endswith(OF_THE_MACHINE)}

    def curve(self, name: str) -> list[float]:
        """One metric, in the order of tokens."""
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
    """Starts real processes from the checkout and waits for them.

    folder  of all processes of pytest
    """

    folder: Path
    environment: dict[str, str]
    script: str = str(SCRIPT)

    def port(self) -> str:
        """A port that nobody listens on, for the launcher."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return str(probe.getsockname()[1])

    def shared(self, *settings: str, **options: object) -> Result:
        """The same run for every test that asks for it; nobody may change its folder."""
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
        watch: Callable[[str, subprocess.Popen[str]], None] | None = None,
    ) -> Result:
        """Train. Through the `deepspeed` launcher where asked; without it, ranks are started as the launcher would.

        settings  bindings for --set; options: further options of mcframe/run.py
        watch     is shown every line of output as it comes, with the process
        """
        run_dir = run_dir or self.folder / f"run-{os.getpid()}-{time.monotonic_ns()}"
        arguments = [str(SCRIPT), "--gin", str(gin), "--run-dir", str(run_dir), *options]
        for setting in settings:
            arguments += ["--set", setting]
        command = [sys.executable]
        if launcher:
            command += ["-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
            command += ["--master_port", self.port()]
        elif ranks > 1:  # saves two processes that import all of DeepSpeed
            command += ["-c", START_RANKS, self.port(), str(ranks), sys.executable]
        return self.execute([*command, *arguments], run_dir=run_dir, environment=environment, watch=watch)

    def execute(
        self,
        command: Sequence[str],
        *,
        run_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        watch: Callable[[str, subprocess.Popen[str]], None] | None = None,
    ) -> Result:
        """Any command, in a process group of its own, as a terminal would start it. Waits for the whole group."""
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**self.environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        deadline = _Deadline(process)
        lines = []
        with deadline:
            assert process.stdout is not None
            for line in process.stdout:  # to the end of all that write to it, not of the launcher alone
                lines.append(line)
                if watch is not None:
                    watch(line, process)
            process.wait()
        output = "".join(lines)
        assert not deadline.passed, f"not done after {TIMEOUT_S} s:\n{output[-6000:]}"
        return Result(process.returncode, output, run_dir or Path())


class _Deadline:
    """Kills a process group that takes too long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        import threading

        self.passed = False
        self._process = process
        self._timer = threading.Timer(TIMEOUT_S, self._kill)

    def _kill(self) -> None:
        self.passed = True
        os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


class Site:
    """A folder for PYTHONPATH that holds packages as pip leaves them: a module and its entry point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, source: str) -> None:
        """A plug-in package of one module."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{package}.py").write_text(textwrap.dedent(source), "utf-8")
        info = self.folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[mcframe.plugins]\nit = {package}\n", "utf-8")

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that start runs come first; thousands of short tests fill what is left."""
    slow = {item.path for item in items if starts_runs(item)}
    items.sort(key=lambda item: item.path not in slow)


def starts_runs(item: pytest.Item) -> bool:
    return "launches" in getattr(item, "fixturenames", ()) or item.get_closest_marker("launcher") is not None


@pytest.fixture(scope="session")
def launches(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Launches:
    """Real runs, with a token cache that all of them share and nothing of the user's around them."""
    base = tmp_path_factory.getbasetemp()
    # A worker of pytest-xdist has a folder of its own in the one that belongs to all.
    folder = (base if worker_id == "master" else base.parent) / "launches"
    folder.mkdir(exist_ok=True)
    dropped = ("WANDB_", "MCFRAME_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "PYTHONPATH", "DS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {
        "MCFRAME_CACHE": str(folder / "cache"),
        "NETRC": str(folder / "netrc"),
        "WANDB_CONFIG_DIR": str(folder / "wandb"),
        "HF_HUB_OFFLINE": "1",
        # More threads than free cores are ten times slower than one.
        "OMP_NUM_THREADS": "1",
        # Frames as wide as their longest line, so that a message can be searched for.
        "COLUMNS": "400",
        "PYTHONUNBUFFERED": "1",
    }
    return Launches(folder, environment)


@pytest.fixture(scope="session")
def new_site() -> type[Site]:
    """Makes a folder for plug-in packages that outlives a test."""
    return Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty folder for plug-in packages."""
    return Site(tmp_path / "site")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def smoke() -> Path:
    """The preset that takes seconds."""
    return SMOKE
