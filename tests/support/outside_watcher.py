"""A plug-in that times the steps of a run by its own clock, and records every read of a tensor's value by mcframe.

It writes a line of `watched.jsonl` for each logging interval: the tokens, the milliseconds of each step and of each of
its phases by the run's own timers, and the file and line of every read. All milliseconds are of processor time of the
run's thread: on a busy machine, a wait for a core between two phases would belong to neither.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

import mcframe
from mcframe.hookspecs import hookimpl
from mcframe.metrics.timers import HostMark
from mcframe.training.trainer import Trainer

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
PACKAGE = str(Path(mcframe.__file__).parent)

reads: list[str] = []
steps: list[float] = []
phases: list[dict[str, float]] = []
since = [0.0]
on_host: set[int] = set()


def watch(name: str) -> None:
    """Record the callers of this method of tensors. Reads of a tensor that `cpu` returned are free and not recorded."""
    original = getattr(torch.Tensor, name)

    def noted(tensor, *arguments, **options):
        caller = sys._getframe(1)
        if caller.f_code.co_filename.startswith(PACKAGE) and id(tensor) not in on_host:
            reads.append(f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno} {name}")
        result = original(tensor, *arguments, **options)
        if name == "cpu":
            on_host.add(id(result))
        return result

    setattr(torch.Tensor, name, noted)


def watch_steps() -> None:
    """Record the time from the end of each step to that of the next. `step_finished` comes after log and checkpoint."""
    original = Trainer.step

    def timed(trainer):
        before = dict(trainer.timers._ms)
        original(trainer)
        now = time.thread_time()
        steps.append(1000 * (now - since[0]))
        since[0] = now
        phases.append({name: ms - before.get(name, 0.0) for name, ms in trainer.timers._ms.items()})

    Trainer.step = timed


def processor_time(mark: HostMark) -> None:
    """Replacement of `HostMark.__init__`."""
    mark.seconds = time.thread_time()


@hookimpl
def run_started() -> None:
    HostMark.__init__ = processor_time
    watch_steps()
    for name in READS:
        watch(name)


@hookimpl
def metrics_logged(run, metrics) -> None:
    with (run.directory / "watched.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"tokens": run.tokens, "steps": steps, "phases": phases, "reads": reads}) + "\n")
    for noted in (reads, steps, phases, on_host):
        noted.clear()
    since[0] = time.thread_time()
