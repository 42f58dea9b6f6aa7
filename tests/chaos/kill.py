"""Kill real runs at random moments, resume them with the same command, and compare them with undisturbed ones.

    python -m tests.chaos.kill [--kills 100] [--seed 1] [--out chaos.json]

A configuration is a number of ranks, a ZeRO stage, and checkpoints written in the background or not. A run is killed up
to three times, then it may end. A kill hits every process, the launcher, or one rank, with a moment that the seed
determines: while it starts, after some rows of metrics, at a validation, or while a checkpoint is written. After each
kill no process may stay, and every checkpoint that was complete must be there after the next start. At the end metrics
and weights equal those of the undisturbed run, bit by bit. Ctrl-C prints the report so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mcframe.training.checkpoint_folder import checkpoints
from tests.support.launches import ROOT, STEP, Result

STEPS = 16
SETTINGS = (
    f"run.batch_tokens = {STEP}", f"run.total_tokens = {STEPS * STEP}", f"logging.every = {STEP}",
    f"checkpoint.every = {2 * STEP}", "checkpoint.keep = 99", f"validation.every = {4 * STEP}",
    "validation.windows = 4",
)  # fmt: skip
MOMENTS = ("start", "training", "validation", "checkpoint")
TARGETS = ("all", "all", "launcher", "command", "rank", "signal")
ENDS_WITHIN_S = 90.0
KILLS_OF_A_RUN = 3


@dataclass(frozen=True)
class Configuration:
    """Ranks, ZeRO stage, and whether checkpoints are written in the background."""

    ranks: int
    stage: int
    background: bool

    @property
    def settings(self) -> tuple[str, ...]:
        """The bindings of a run."""
        return (*SETTINGS, f"zero.stage = {self.stage}", f"checkpoint.asynchronous = {self.background}")


@dataclass
class Kill:
    """A kill: when, what, and what was wrong after it."""

    number: int
    configuration: str
    moment: str
    target: str
    rows: int = 0
    done: bool = False
    problem: str = ""


class Run:
    """A run that is started again and again with one command."""

    def __init__(self, folder: Path, configuration: Configuration, environment: dict[str, str]) -> None:
        self.folder, self.configuration = folder, configuration
        self.environment = environment
        settings = itertools.chain.from_iterable(("--set", each) for each in configuration.settings)
        self.command = [
            sys.executable, "-m", "mcframe", "run", "--gin", str(ROOT / "gin" / "smoke.gin"), "--run-dir", str(folder),
            "--ranks", str(configuration.ranks), *settings,
        ]  # fmt: skip
        self.log = folder.with_suffix(".log")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command in a session of its own."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def rows(self) -> int:
        """Return the number of rows in metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def complete(self) -> set[str]:
        """Return the names of the complete checkpoints."""
        return {each.path.name for each in checkpoints(self.folder)}

    def end(self) -> int:
        """Run to the end and return the exit code."""
        return self.start().wait(timeout=600)


def processes(command: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the command and all processes below it."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(command.pid)
        return [root, *root.children(recursive=True)]
    return []


def pick(found: Sequence[psutil.Process], target: str, draw: random.Random) -> list[psutil.Process]:
    """Return the processes that a kill hits: the launcher is started by the command, and starts the ranks."""
    if target in ("command", "signal"):
        return list(found[:1])
    kinds = {"launcher": "deepspeed.launcher", "rank": "mcframe/run.py"}
    if target not in kinds:
        return list(found)
    named = []
    for each in found[1:]:
        with suppress(psutil.Error):
            text = " ".join(each.cmdline())
            if kinds[target] in text and not (target == "rank" and "deepspeed.launcher" in text):
                named.append(each)
    return [draw.choice(named)] if named else list(found)


def wait_for(moment: str, run: Run, running: Callable[[], bool], draw: random.Random) -> None:
    """Return at a random moment of this kind, or when the run has ended."""
    if moment == "start":
        time.sleep(draw.uniform(0, 8))
        return
    target = run.rows() + draw.randint(1, 5)
    while running() and run.rows() < target:
        time.sleep(0.005)
    if moment == "validation":
        while running() and run.rows() % 4 != 3:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
    elif moment == "checkpoint":
        while running() and not any((run.folder / "checkpoints").glob(".writing-*")):
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.02))
    else:
        time.sleep(draw.uniform(0, 0.1))


def kill(run: Run, record: Kill, draw: random.Random) -> None:
    """Start a run, kill it, and record what is wrong then."""
    command = run.start()
    wait_for(record.moment, run, lambda: command.poll() is None, draw)
    found = processes(command)
    record.rows = run.rows()
    if command.poll() is not None:
        return
    before = run.complete()
    record.done = True
    name = draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)) if record.target == "signal" else signal.SIGKILL
    for each in pick(found, record.target, draw):
        with suppress(psutil.NoSuchProcess):
            each.send_signal(name)
    known = {each.pid: each for each in [*found, *processes(command)]}
    _, alive = psutil.wait_procs(known.values(), timeout=ENDS_WITHIN_S)
    command.poll()
    alive = [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    if alive:
        record.problem = f"{len(alive)} processes after {ENDS_WITHIN_S:g} s: {alive[0].cmdline()[:4]}"
        for each in alive:
            each.kill()
    if before - run.complete():
        record.problem += f" lost {sorted(before - run.complete())}"


def differences(run: Run, reference: Run) -> str:
    """Return what differs from the undisturbed run at the end; empty if nothing does."""
    found = []
    one, other = Result(0, "", run.folder), Result(0, "", reference.folder)
    if one.metrics != other.metrics:
        found.append("metrics")
    name = max(reference.complete())
    for file in (reference.folder / "checkpoints" / name).rglob("*.safetensors"):
        own = run.folder / file.relative_to(reference.folder)
        if not own.exists() or own.read_bytes() != file.read_bytes():
            found.append(str(file.relative_to(reference.folder)))
    if run.complete() != reference.complete():
        found.append(f"checkpoints {sorted(run.complete() ^ reference.complete())}")
    found += [f"left {each.name}" for each in (run.folder / "checkpoints").glob(".*")]
    return ", ".join(found)


class Chaos:
    """A number of kills over all configurations.

    Args:
        folder: For the runs.
        seed: Determines configurations, moments and targets.
        configurations: In turn.
        report: Receives lines of progress.
    """

    def __init__(
        self, folder: Path, seed: int, configurations: Sequence[Configuration], report: Callable[[str], None]
    ) -> None:
        self.folder, self.configurations, self.report = folder, configurations, report
        self.draw, self.kills = random.Random(seed), list[Kill]()
        self.problems: list[str] = []
        self._references: dict[tuple[int, int], Run] = {}
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

    def run(self, count: int) -> None:
        """Kill until `count` kills are done."""
        for number, configuration in enumerate(itertools.cycle(self.configurations)):
            if sum(each.done for each in self.kills) >= count:
                return
            self._one_run(number, configuration, count)

    def _one_run(self, number: int, configuration: Configuration, count: int) -> None:
        reference = self._reference(configuration)
        run = Run(self.folder / f"run-{number}", configuration, self.environment)
        for _ in range(KILLS_OF_A_RUN):
            if sum(each.done for each in self.kills) >= count:
                break
            moment, target = self.draw.choice(MOMENTS), self.draw.choice(TARGETS)
            record = Kill(len(self.kills), str(configuration), moment, target)
            self.kills.append(record)
            kill(run, record, self.draw)
            self.report(
                f"{sum(each.done for each in self.kills)}/{count} run {number} {configuration}: {moment}, {target}, "
                f"{record.rows} rows{'' if record.done else ', ended before'} {record.problem or 'ok'}"
            )
        code = run.end()
        problem = differences(run, reference) if code == 0 else f"exit code {code}"
        if problem:
            self.problems.append(f"run {number} {configuration}: {problem}; {run.log}")
        else:
            shutil.rmtree(run.folder)
        self.report(f"run {number} {configuration}: {problem or 'equal to the undisturbed run'}")

    def _reference(self, configuration: Configuration) -> Run:
        key = (configuration.ranks, configuration.stage)
        if key not in self._references:
            run = Run(self.folder / f"reference-{key[0]}-{key[1]}", configuration, self.environment)
            if run.end() != 0:
                raise SystemExit(f"the undisturbed run failed: {run.log}")
            self._references[key] = run
        return self._references[key]

    @property
    def failures(self) -> list[str]:
        """What was wrong."""
        return [f"kill {each.number} {each.configuration}: {each.problem}" for each in self.kills if each.problem] + (
            self.problems
        )


def every_configuration() -> list[Configuration]:
    """Return one and two ranks at ZeRO 0, 1 and 3, with checkpoints in the background and not."""
    return [
        Configuration(ranks, stage, background)
        for background, stage, ranks in itertools.product((True, False), (0, 1, 3), (1, 2))
    ]


def main() -> int:
    """Run, print a report, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("chaos.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mcframe-chaos-"))
    chaos = Chaos(folder, options.seed, every_configuration(), lambda line: print(line, flush=True))
    with suppress(KeyboardInterrupt):
        chaos.run(options.kills)
    done = [each for each in chaos.kills if each.done]
    for kind, names in (("moment", MOMENTS), ("target", sorted(set(TARGETS)))):
        print(kind, {name: sum(getattr(each, kind) == name for each in done) for name in names})
    print(f"{len(done)} kills with seed {options.seed}, {len(chaos.failures)} failures", *chaos.failures, sep="\n")
    facts = {"seed": options.seed, "failures": chaos.failures, "kills": [asdict(each) for each in chaos.kills]}
    options.out.write_text(json.dumps(facts, indent=1))
    return 1 if chaos.failures else 0


if __name__ == "__main__":
    sys.exit(main())
