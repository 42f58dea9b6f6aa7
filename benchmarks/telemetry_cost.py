"""What telemetry costs: steps with and without it in turn, in one run: `python benchmarks/telemetry_cost.py`.

With it, a step computes the statistics and tallies of its variants and of LensNet, adds them up and times its phases.
Without it, none of that happens. On top of the ratio comes what a logging interval costs once: reading back and writing
to every sink. On a CPU the clock is the process's own, so that what else the machine does counts less. The last line is
a row for docs/performance.md. About two minutes for quickstart on two quiet cores.
Options: --gin FILE, --steps N (of each kind), --set BINDING.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from mcframe.cli.train import _sinks
from mcframe.config.run_config import load_run_config
from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.progress import Progress
from mcframe.modeling import added_losses, lens_objective, step
from mcframe.modeling.step import no_timer
from mcframe.training.build import build_components
from mcframe.training.engine import Engine, prepare_environment, start_distributed
from mcframe.training.run_directory import plan
from mcframe.training.trainer import Trainer

QUICKSTART = Path(__file__).parents[1] / "gin" / "quickstart.gin"
WARM_UP, BATCHES = 6, 5


def build(gin: Path, settings: list[str], directory: Path) -> Trainer:
    """The trainer of a run, with all of its sinks, about to take its first step."""
    prepare_environment()
    loaded = load_run_config([gin], settings)
    run_plan = plan("telemetry_cost", directory, "never")
    directory.mkdir(parents=True, exist_ok=True)
    with loaded.config.placing():
        components = build_components(loaded.run_config)
        device = start_distributed()
        engine = Engine(components.model, loaded.run_config, world_size=1)
        trainer = Trainer(components, engine, run_plan, _sinks(loaded, run_plan, 0), loaded.registry.hooks, device)
    trainer.progress = Progress(trainer.clock.total_tokens, 0, False)
    return trainer


@contextmanager
def silent(trainer: Trainer) -> Iterator[None]:
    """No statistics, no tallies, no adding up, no timers."""
    zero, timed = torch.zeros((), device=trainer.device), trainer.timers.phase
    with ExitStack() as stack:
        for module, name in (
            (step, "pairing_statistics"),
            (step, "context_tallies"),
            (step, "lens_tallies"),
            (lens_objective, "_score_statistics"),
            (lens_objective, "_pair_statistics"),
        ):
            stack.enter_context(patch.object(module, name, lambda *_: StepMetrics()))
        for module in (step, lens_objective, added_losses):
            stack.enter_context(patch.object(module, "masked_sum", lambda *_, **__: zero))
        for pool in (trainer.accumulator, trainer.tally):
            stack.enter_context(patch.object(pool, "add", lambda _: None))
        stack.enter_context(patch.object(trainer.timers, "phase", no_timer))
        stack.enter_context(patch.object(trainer.timers, "step", nullcontext))
        trainer.engine.time_with(no_timer)
        stack.callback(trainer.engine.time_with, timed)
        yield


def milliseconds(trainer: Trainer, run: Any) -> float:
    """Time of a call, with all that it gave the device."""
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    start = clock()
    run()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return 1000 * (clock() - start)


def main() -> None:
    """Print both costs as shares of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gin", type=Path, default=QUICKSTART)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(options.gin, options.set, Path(folder) / "run")
        for _ in range(WARM_UP):
            trainer.step()
        pairs, logs = [], []
        for number in range(options.steps):
            # Which of the two comes first alternates, so that neither has the warmer caches.
            times = {}
            for kind in ("on", "off") if number % 2 else ("off", "on"):
                if kind == "on":
                    times[kind] = milliseconds(trainer, trainer.step)
                else:
                    with silent(trainer):
                        times[kind] = milliseconds(trainer, trainer.step)
            pairs.append((times["on"], times["off"]))
            if number % 10 == 9:
                logs.append(milliseconds(trainer, trainer._log))
        trainer.loggers.close()
        trainer.loader.close()
        report(trainer, options.gin.stem, pairs, logs)


def report(trainer: Trainer, name: str, pairs: list[tuple[float, float]], logs: list[float]) -> None:
    """Medians over the run and over parts of it."""
    on, off = (median(each[kind] for each in pairs) for kind in (0, 1))
    per_interval = max(1, trainer.run_config.cadence.log_tokens // trainer.run_config.batch_tokens)
    size = len(pairs) // BATCHES
    parts = [pairs[n * size : (n + 1) * size] for n in range(BATCHES)]
    ratios = [median(a / b for a, b in part) - 1 for part in parts if part]
    ratio, log = median(a / b for a, b in pairs) - 1, median(logs)
    once = log / per_interval / off
    print(f"{name}: {len(pairs)} steps of each kind on {trainer.device}")
    print(f"a step with telemetry   {on:8.1f} ms (median)")
    print(f"a step without          {off:8.1f} ms (median)")
    print(f"in the step             {100 * ratio:+8.2f} % (median of pairs)")
    print(f"  by fifths of the run  {', '.join(f'{100 * ratio:+.2f} %' for ratio in ratios)}")
    print(f"a logging interval      {log:8.1f} ms, every {per_interval} steps: {100 * once:+.2f} %")
    print(f"together                {100 * (ratio + once):+8.2f} %")
    spread = f"{100 * min(ratios):+.1f} to {100 * max(ratios):+.1f} %"
    figures = f"{off:,.0f} | {100 * ratio:+.1f} % ({spread}) | {100 * once:+.1f} % | {100 * (ratio + once):+.1f} %"
    print("\n| run | step without, ms | in a step (fifths of the run) | logging | together | machine |")
    print(f"| {name} | {figures} | {machine(trainer.device)} |")


def machine(device: torch.device) -> str:
    """What the figures were measured on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    cores = f"{os.cpu_count()} cores of {processor}, {torch.get_num_threads()} threads"
    return f"{cores}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
