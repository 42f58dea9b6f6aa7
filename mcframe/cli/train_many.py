"""Several trainings in one group of ranks, for `mcframe.testing.trainings`, each in a directory of its own.

    deepspeed --module mcframe.cli.train_many JOBS.json

Importing DeepSpeed costs seconds a process, so one start of the launcher serves many trainings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcframe.cli.run_options import arguments
from mcframe.cli.train import train_in_group
from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.ending_signals import ParentWatch, handle_ending_signals
from mcframe.errors import raise_interrupt
from mcframe.files import replaced
from mcframe.registry.discovery import PluginOptions
from mcframe.training.build import Components, build_components, validation_windows
from mcframe.training.checkpoint_folder import find
from mcframe.training.engine import prepare_environment
from mcframe.training.weights import load_weights

WINDOWS = 4
"""Held-out windows of the decisions that ranks are compared by."""


def main(jobs: Path) -> int:
    """Run the jobs of a file. Return the exit code of the first job that failed, or 0.

    A job that fails ends the process: otherwise the other ranks would wait for it forever.
    """
    prepare_environment()
    rank = int(os.environ["RANK"])
    for job in json.loads(jobs.read_text("utf-8")):
        folder = Path(job["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with (
            (folder / f"log-{rank}.txt").open("w", encoding="utf-8", buffering=1) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            code, error = _training(job["arguments"], folder, rank)
        result = {"code": code, "error": error, "seconds": time.perf_counter() - started}
        with replaced(folder / f"result-{rank}.json") as partial:
            partial.write_text(json.dumps(result), "utf-8")
        if code:
            return code
    return 0


def _training(argv: list[str], folder: Path, rank: int) -> tuple[int, str]:
    """Train and write the decisions. Return the exit code and the text of an exception, if one was raised."""
    try:
        options = arguments().parse_args(argv)
        if code := train_in_group(options):
            return code, ""
        plugins = PluginOptions(tuple(options.plugin), tuple(options.no_plugin))
        with replaced(folder / f"decisions-{rank}.json") as partial:
            partial.write_text(json.dumps(decisions(options.run_dir, plugins, rank)), "utf-8")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any exception of a plug-in is the result
        traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = "; ".join((str(error), *getattr(error, "__notes__", ())))
        return 1, f"{type(error).__name__}: {text} ({frame.filename}:{frame.lineno})"
    return 0, ""


def decisions(run_dir: Path, plugins: PluginOptions, rank: int) -> dict[str, Any]:
    """Return this rank's held-out windows, variants and focuses under a finished run's weights, equal on all ranks.

    The global random states of ranks differ meanwhile, as they may in training.
    """
    random.seed(rank)
    np.random.seed(rank)
    torch.manual_seed(rank)
    loaded = load_run_config([run_dir / "config.gin"], [], plugins)
    with loaded.config.locating_errors():
        components = build_components(loaded.run_config)
        components.step.load_state_dict(load_weights(find(run_dir)))
        return _decided(components)


@torch.no_grad()
def _decided(components: Components) -> dict[str, Any]:
    windows = validation_windows(components)[0][:WINDOWS]
    model, run_config = components.model.eval(), components.run_config
    found: dict[str, Any] = {"held-out windows": _digest(windows)}
    budget = run_config.context.target(1.0)
    if model.strategy.count:
        seeds = variant_seeds(run_config.seed, torch.arange(len(windows)), model.strategy.count)
        length = model.tree.reachable_length(budget)
        found["variants"] = model.propose(windows[:, :-1], seeds, length).tolist()
    if model.lensnet is not None:
        focus, rounds = model.refocus(windows[:, :-1], components.allocator, budget, seeds[:, 0])
        found |= {"focus": focus.tolist(), "rounds of refocusing": rounds.tolist()}
    return found


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    handle_ending_signals(raise_interrupt)
    ParentWatch().start()
    sys.exit(main(Path(sys.argv[-1])))
