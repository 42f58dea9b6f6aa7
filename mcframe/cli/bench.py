"""`mcframe bench`: the time of a step against its plain baseline and the floor of its networks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.markup import escape

from mcframe.cli.bench_history import compare, read_history
from mcframe.cli.options import Set, command
from mcframe.cli.vocabulary import vocabulary
from mcframe.config.baselines import BASELINES
from mcframe.config.run_config import Loaded, load_run_config
from mcframe.environment import free_port
from mcframe.errors import require
from mcframe.metrics.tables import FittedTable
from mcframe.metrics.timers import STEP
from mcframe.registry.discovery import PluginOptions
from mcframe.training.bench import STEP_TIMERS, BenchedStep, machine, measure
from mcframe.training.engine import prepare_environment, start_distributed
from mcframe.training.run_directory import revision

AS_WRITTEN = "as written"
_PHASES = dict(
    zip(STEP_TIMERS, ("base", "gists", "variants", "pack", "lens", "losses", "backward", "optimizer"), strict=True)
)


@command
def bench(
    plugins: PluginOptions,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A gin file.")],
    set_: Set = [],  # noqa: B006 - typer copies it
    case: Annotated[
        list[str],
        typer.Option(metavar="BINDINGS", help="A further row: bindings, divided by ';'. May be repeated."),
    ] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each kind that are timed.")] = 9,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare with the lines of FILE of this machine and setting; add these."),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Rise of a ratio that is a regression.")] = 0.05,
) -> int:
    """Time a step, its plain baseline and the networks of both alone, on random tokens. Exit code 1: regressions."""
    for text in case:  # a wrong one would be found after the figures of those before it
        load_run_config([file], [*set_, *_bindings(text)], plugins)
    prepare = ["--ranks", str(ranks), "--rounds", str(rounds), "--tolerance", str(tolerance)]
    for name, values in (("--set", set_), ("--case", case)):
        prepare += [part for value in values for part in (name, value)]
    for name, path in (("--json", json_), ("--history", history)):
        if path is not None:
            usable = path.parent.is_dir() and not path.is_dir()
            require(
                usable, name, str(path), "a file in a folder that exists", "Create the folder, or name another file."
            )
            prepare += [name, str(path)]
    earlier = [] if history is None else read_history(history)
    prepare += [f"--plugin={name}" for name in plugins.named] + [f"--no-plugin={name}" for name in plugins.without]
    prepare += ["--strict-plugins"] * plugins.strict
    if ranks > 1 and "RANK" not in os.environ:
        return _launched(ranks, [str(file), *prepare])
    prepare_environment()
    start_distributed()
    try:
        rows = [_row(file, [*set_, *_bindings(text)], text, plugins, rounds) for text in ("", *case)]
        if dist.get_rank() != 0:
            return 0
        console = Console()
        console.print(_table(rows), _phase_table(rows), highlight=False)
        if json_ is not None:
            json_.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
        if history is None:
            return 0
        regressions = compare(rows, earlier, tolerance)
        for each in regressions:
            console.print(f"regression: {each}", style="red", markup=False, highlight=False, soft_wrap=True)
        with history.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
        return int(bool(regressions))
    finally:
        dist.destroy_process_group()


def _launched(ranks: int, arguments: list[str]) -> int:
    """Run the command on several ranks of this machine. Return the exit code."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level=error", "--no_local_rank"]
    launcher += ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
    environment = os.environ if torch.cuda.is_available() else {**os.environ, "DS_ACCELERATOR": "cpu"}
    return subprocess.run([*launcher, "--module", "mcframe", "bench", *arguments], env=environment).returncode


def _bindings(text: str) -> list[str]:
    return [binding.strip() for binding in text.split(";") if binding.strip()]


def _row(file: Path, settings: list[str], case: str, plugins: PluginOptions, rounds: int) -> dict[str, Any]:
    """Measure one setting and return its row."""
    loaded = load_run_config([file], settings, plugins)
    with loaded.explaining():
        size = vocabulary(loaded)
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        step = BenchedStep(loaded.run_config, size, device)
        plain = load_run_config([file], [*settings, BASELINES["--baseline"], "run.trainable = ('base',)"], plugins)
        baseline = BenchedStep(plain.run_config, size, device)
        measured = measure(step, baseline, rounds)
    return {
        "file": file.name,
        "case": case or AS_WRITTEN,
        "settings": settings,
        "digest": _digest(loaded),
        "ranks": dist.get_world_size(),
        "clock": step.clock,
        "floor": "networks",
        "rounds": rounds,
        "machine": machine(device),
        "revision": revision(),
        **asdict(measured),
    }


def _digest(loaded: Loaded) -> str:
    """Return a hash of all bindings: figures of other settings are not compared."""
    bound = {name: repr(value) for name, value in loaded.config.as_dict().items()}
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()[:12]


def _table(rows: list[dict[str, Any]]) -> FittedTable:
    first = rows[0]
    about = f"medians of {first['rounds']} steps, {first['clock']} time, {first['machine']['device']}"
    table = FittedTable(title=f"{first['file']}: {about}", title_justify="left")
    columns = {
        "step ms": ("step_ms", ",.1f"),
        "plain ms": ("baseline_ms", ",.1f"),
        "times plain": ("step/baseline", ".2f"),
        "times FLOPs": ("flops/baseline", ".2f"),
        "floor ms": ("floor_ms", ",.1f"),
        "times floor": ("step/floor", ".2f"),
        "plain, times floor": ("baseline/floor", ".2f"),
    }
    table.add_column("setting")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(escape(row["case"]), *(format(row["figures"][key], digits) for key, digits in columns.values()))
    return table


def _phase_table(rows: list[dict[str, Any]]) -> FittedTable:
    """Return the phases of each setting, and in brackets those of its baseline."""
    table = FittedTable(title="Phases, ms (those of the baseline)", title_justify="left")
    table.add_column("phase", no_wrap=True)
    for row in rows:
        table.add_column(escape(row["case"]), justify="right")
    for timer, name in (*_PHASES.items(), (None, "rest")):
        cells = [(_spent(row["phases"], timer), _spent(row["baseline_phases"], timer)) for row in rows]
        if any(any(cell) for cell in cells):
            table.add_row(name, *(f"{own:,.1f}" + (f" ({plain:,.1f})" if plain else "") for own, plain in cells))
    return table


def _spent(phases: dict[str, float], timer: str | None) -> float:
    """Return the ms of a timer, or of a step outside all timers."""
    if timer is None:
        return phases[STEP] - sum(phases.get(each, 0.0) for each in _PHASES)
    return phases.get(timer, 0.0)
