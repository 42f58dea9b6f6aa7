"""The parts of the GPU kit: commands, time limits, and the figures that each leaves."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

GIN = "benchmarks/gpu/run10_local.gin"
MCFRAME = (sys.executable, "-m", "mcframe")
TIMERS = ("train/step_ms", "train/base_ms", "mc/build_ms", "mc/variant_ms", "mc/lens_ms", "train/backward_ms",
          "train/optimizer_ms", "train/data_ms")  # fmt: skip
_TABLE_ROW = re.compile(r"[│┃]?\s*(\S.*?)\s*[│┃]\s*([\d,]+)\s*[│┃]\s*([\d,.]+)\s*[│┃]\s*([\d.]+ %)")
_RLIMIT_KIB = 32 * 2**20

Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the kit.

    Attributes:
        name: Its name in results.
        commands: Commands that run at the same time.
        limit: Seconds for all of them.
        figures: Returns the figures from the output of the commands.
    """

    name: str
    commands: Sequence[Sequence[str]]
    limit: float
    figures: Callable[[Sequence[str]], Figures] = field(default=lambda outputs: {})


def parts(folder: Path, tiny: bool) -> list[Part]:
    """Return the parts in their order: what matters most comes first.

    Args:
        folder: Of runs and results.
        tiny: Rehearse with sizes for a CPU: the preset smoke.gin in place of run10's, and few steps.
    """
    gin = "gin/smoke.gin" if tiny else GIN
    sizes: list[str] = []
    if tiny:
        sizes = _set("run.total_tokens = None", "run.total_steps = 7", "logging.every = 1024", "checkpoint.every = 0",
                     "validation.every = 0", "validation.windows = 2")  # fmt: skip
    quick = _set("run.total_steps = 7")
    bench = [*MCFRAME, "bench", gin, "--rounds", "2" if tiny else "7"]

    def train(name: str, *options: str, limit: float) -> Part:
        run = folder / name
        command = [*MCFRAME, "run", "--gin", gin, "--run-dir", str(run), "--resume", "never", *sizes, *options]
        return Part(name, [command], limit, lambda outputs: training_figures(run, outputs[0]))

    def benched(name: str, *options: str, limit: float) -> Part:
        file = folder / f"{name}.json"
        return Part(name, [[*bench, "--json", str(file), *options]], limit, lambda outputs: {"rows": _json(file)})

    return [
        Part("doctor", [[*MCFRAME, "doctor"]], 20),
        _stages(folder, (0, 3) if tiny else (0, 1, 2, 3)),
        train("run10", limit=90),
        train("baseline", "--baseline", limit=60),
        benched("bench", limit=50),
        benched("compiled", *_set("run.compile = True"), limit=70),
        train("profile", "--profile", *quick, limit=45),
        _limited(train("micro_batch", *_set("run.micro_batch = 'auto'"), *quick, limit=45), tiny),
        Part("decode", [[sys.executable, "-m", "benchmarks.gpu.decode", str(folder / "run10")]], 30, decode_figures),
    ]


def _limited(part: Part, tiny: bool) -> Part:
    """Return a part under the limit of memory without which a CPU has no search for a micro-batch."""
    if not tiny:
        return part
    commands = [["sh", "-c", f'ulimit -v {_RLIMIT_KIB}; exec "$@"', "sh", *command] for command in part.commands]
    return replace(part, commands=commands)


def _stages(folder: Path, stages: Sequence[int]) -> Part:
    """Return the part that trains smoke.gin at every stage of ZeRO, all at once: each uses little of a GPU."""
    runs = {stage: folder / f"smoke-{stage}" for stage in stages}
    commands = [
        [*MCFRAME, "run", "--gin", "gin/smoke.gin", "--run-dir", str(run), "--resume", "never",
         *_set(f"deepspeed.zero_stage = {stage}", "run.total_tokens = 6144", "logging.every = 1024",
               "validation.every = 0", "validation.windows = 2", "checkpoint.every = 0")]
        for stage, run in runs.items()
    ]  # fmt: skip

    def figures(outputs: Sequence[str]) -> Figures:
        trained = map(training_figures, runs.values(), outputs)
        return {f"loss_zero_{stage}": own.get("loss_last") for stage, own in zip(runs, trained, strict=True)}

    return Part("smoke", commands, 45, figures)


def _set(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def training_figures(run: Path, output: str) -> Figures:
    """Return the figures of a run: the last half of its log lines, first and last loss, operations of a profile."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    logged = [line for line in lines if "train/tok_per_sec" in line]
    late = logged[len(logged) // 2 :]
    figures: Figures = {}
    for name in ("train/tok_per_sec", "train/mfu", "train/hfu", "train/memory_gib", *TIMERS):
        values = [line[name] for line in late if name in line]
        if values:
            figures[name] = median(values)
    losses = [line["train/loss_lod0"] for line in lines if "train/loss_lod0" in line]
    if losses:
        figures |= {"loss_first": losses[0], "loss_last": losses[-1]}
    if found := re.search(r"micro-batches\s+of\s+(\d+)", " ".join(output.replace("│", " ").split())):
        figures["micro_batch"] = int(found[1])
    if operations := top_operations(output):
        figures["operations"] = operations
    return figures


def top_operations(output: str) -> list[Mapping[str, Any]]:
    """Return the rows of the table that `mcframe run --profile` prints."""
    _, title, table = output.partition("Operations that take longest")
    rows = [_TABLE_ROW.search(line) for line in table.splitlines()[:30]] if title else []
    return [
        {"operation": row[1], "calls": int(row[2].replace(",", "")), "ms": float(row[3].replace(",", "")),
         "fraction": row[4]}
        for row in rows if row is not None
    ]  # fmt: skip


def decode_figures(outputs: Sequence[str]) -> Figures:
    """Return what benchmarks.gpu.decode prints in its last line."""
    found: Figures = json.loads(outputs[0].strip().splitlines()[-1])
    return found
