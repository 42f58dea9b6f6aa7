"""Tiny runs that are disturbed, the undisturbed run of each configuration, and the comparison of both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mcframe.errors import UserError
from mcframe.metrics.catalogue import OF_THE_MACHINE
from mcframe.training.checkpoint_folder import checkpoints, folders, verified
from tests.support.forked_ranks import ForkedRanks
from tests.support.launches import SMOKE, STEP, Launches, Process, Result, outcome, popen

STEPS = 12
_ENDS_WITHIN_S = 60.0
_CHANGES = ("tensorboard", "wandb", "running.json", ".superseded.jsonl")
"""Files that a resumed run may have under another name, or in addition."""


@dataclass(frozen=True)
class Configuration:
    """Ranks, ZeRO stage and kind of checkpoints of a run."""

    ranks: int = 1
    stage: int = 0
    asynchronous: bool = True

    def __str__(self) -> str:
        kind = "asynchronous" if self.asynchronous else "synchronous"
        return f"{self.ranks} rank{'s' * (self.ranks > 1)}, ZeRO {self.stage}, {kind}"

    def settings(self) -> tuple[str, ...]:
        """Return the bindings of a run with a checkpoint every second step and a validation every step."""
        return (
            f"run.batch_tokens = {STEP}", "run.micro_batch = 2", f"run.total_tokens = {STEPS * STEP}",
            f"logging.every = {STEP}", f"validation.every = {STEP}", "validation.windows = 8",
            f"checkpoint.every = {2 * STEP}", "checkpoint.keep = 2", "run.stall_seconds = 12",
            f"deepspeed.zero_stage = {self.stage}", f"checkpoint.asynchronous = {self.asynchronous}",
        )  # fmt: skip


@dataclass
class Runs:
    """Starts runs, and compares them with undisturbed ones.

    Attributes:
        references: The undisturbed run of each number of ranks and ZeRO stage, through forked ranks.
    """

    launches: Launches
    references: dict[tuple[int, int], Result] = field(default_factory=dict)

    def start(
        self, configuration: Configuration, run_dir: Path, *, launched: bool, settings: tuple[str, ...] = ()
    ) -> Process:
        """Start a run: the command `mcframe run`, or its ranks alone."""
        arguments = ["--gin", str(SMOKE), "--run-dir", str(run_dir)]
        for setting in (*configuration.settings(), *settings):
            arguments += ["--set", setting]
        if not launched:
            launches = self.launches
            return ForkedRanks(arguments, launches.environment, configuration.ranks, launches.port())
        command = [sys.executable, "-m", "mcframe", "run", *arguments, "--ranks", str(configuration.ranks)]
        return popen(command, self.launches.environment)

    def reference(self, configuration: Configuration) -> Result:
        """Return the undisturbed run of a configuration."""
        key = (configuration.ranks, configuration.stage)
        if key not in self.references:
            settings = Configuration(*key).settings()
            self.references[key] = self.launches.run(*settings, ranks=configuration.ranks).succeeded()
        return self.references[key]

    def differences(self, configuration: Configuration, result: Result) -> Iterator[str]:
        """Return in what a finished run differs from the undisturbed one: metrics, weights, states, files."""
        reference = self.reference(configuration)
        if result.code:
            yield f"exit code {result.code}: {result.output[-3000:]}"
            return
        expected, got = reference.metrics, result.metrics
        for tokens in sorted(expected.keys() | got.keys()):
            before, now = expected.get(tokens, {}), got.get(tokens, {})
            if wrong := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
                yield f"metrics after {tokens} tokens: {', '.join(wrong[:4])}"
        if _final(reference.run_dir) != _final(result.run_dir):
            yield "weights or states of the last checkpoint"
        if differ := _names(reference.run_dir) ^ _names(result.run_dir):
            yield f"files: {', '.join(sorted(differ))}"


def _final(run_dir: Path) -> dict[str, object]:
    """Return the content of the last checkpoint, without wall-clock figures."""
    newest = checkpoints(run_dir)[-1].path
    found: dict[str, object] = {"folder": newest.name}
    for file in sorted(newest.glob("*.safetensors")):
        content = file.read_bytes()
        tensors = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:tensors])
        metadata = header.pop("__metadata__")
        found[file.name] = content[tensors:], header, {key: _timeless(json.loads(metadata[key])) for key in metadata}
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        left_out = (*OF_THE_MACHINE, "done")  # at a resumption, reports that are off count as done
        return {key: _timeless(each) for key, each in value.items() if not key.endswith(left_out)}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _names(run_dir: Path) -> set[str]:
    """Return the names of files. Checkpoints are counted from the oldest: a signal may have saved a further one."""
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    for number, path in enumerate(folders(run_dir)):
        names = {name.replace(f"checkpoints/{path.name}", f"checkpoints/{number}") for name in names}
    return {name for name in names if not any(each in name for each in _CHANGES)}


def damage(run_dir: Path) -> list[str]:
    """Return the damage of every checkpoint of a run that is not intact."""
    found = []
    for path in folders(run_dir):
        try:
            verified(path)
        except UserError as error:
            found.append(error.message)
    return found


def processes(process: Process, run_dir: Path) -> list[psutil.Process]:
    """Return the processes of a run: the command, the launchers and the ranks."""
    if isinstance(process, ForkedRanks):
        return [psutil.Process(pid) for pid in process.pids if psutil.pid_exists(pid)]
    return [each for each in psutil.process_iter() if str(run_dir) in arguments(each)]


def arguments(process: psutil.Process) -> list[str]:
    """Return the arguments of a process; one that has ended has none."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def ended(process: Process, run_dir: Path, watch: Callable[[str, Process], None] | None = None) -> Result:
    """Wait for a run. At an exception, such as that of Ctrl-C, end its processes."""
    try:
        return outcome(process, run_dir, watch)
    finally:
        if process.poll() is None:
            survivors(processes(process, run_dir), run_dir, 0.0)


def survivors(started: list[psutil.Process], run_dir: Path, seconds: float = _ENDS_WITHIN_S) -> list[str]:
    """Wait for the processes of a run, end those that remain, and return them."""
    others = [each for each in psutil.process_iter() if str(run_dir) in arguments(each)]
    remaining = psutil.wait_procs({*started, *others}, timeout=seconds)[1]
    for each in remaining:
        each.kill()
    return [f"process {each.pid} was left" for each in remaining]
