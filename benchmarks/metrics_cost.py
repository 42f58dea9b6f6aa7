"""Cost of metrics: steps with and without them in turn, in one run: `python benchmarks/metrics_cost.py`.

With metrics, a step computes metrics and histograms of its variants and of LensNet, accumulates them and times its
phases. A logging interval adds the cost of reading them and writing to every logger. On a CPU the clock is that of the
process, which other processes disturb less. The last line is a row for docs/performance.md. Takes about two minutes for
quickstart on two quiet cores. Options: --gin FILE, --steps N (of each kind), --set BINDING.
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

from mcframe.cli.train import _loggers
from mcframe.config.run_config import load_run_config
from mcframe.context.step_metrics import StepMetrics
from mcframe.losses import terms
from mcframe.modeling.model import no_timer
from mcframe.training import train_step
from mcframe.training.build import build_components
from mcframe.training.engine import Engine, prepare_environment, start_distributed
from mcframe.training.run_directory import plan
from mcframe.training.trainer import Trainer

QUICKSTART = Path(__file__).parents[1] / "gin" / "quickstart.gin"
WARM_UP, BATCHES = 6, 5


def build(gin: Path, settings: list[str], directory: Path) -> Trainer:
    """Return the trainer of a run with all of its loggers, before its first step."""
    prepare_environment()
    loaded = load_run_config([gin], settings)
    run_plan = plan("metrics_cost", directory, "never")
    directory.mkdir(parents=True, exist_ok=True)
    with loaded.config.locating_errors():
        components = build_components(loaded.run_config)
        device = start_distributed()
        engine = Engine(components, world_size=1)
        return Trainer(components, engine, run_plan, _loggers(loaded, run_plan, 0), loaded.registry.hooks, device)


@contextmanager
def without_metrics(trainer: Trainer) -> Iterator[None]:
    """Disable metrics, histograms, the accumulator and the timers."""
    zero, timed = torch.zeros((), device=trainer.device), trainer.timers.phase
    with ExitStack() as stack:
        for module, name in (
            (train_step, "delta_metrics"),
            (train_step, "context_histograms"),
            (train_step, "lens_histograms"),
            (train_step, "lens_metrics"),
            (terms, "_logged"),
        ):
            stack.enter_context(patch.object(module, name, lambda *_: StepMetrics()))
        for module in (train_step, terms):
            stack.enter_context(patch.object(module, "masked_sum", lambda *_, **__: zero))
        stack.enter_context(patch.object(terms, "_weighted", lambda *_: zero))
        stack.enter_context(patch.object(trainer.accumulator, "add", lambda _: None))
        stack.enter_context(patch.object(trainer.timers, "phase", no_timer))
        stack.enter_context(patch.object(trainer.timers, "step", nullcontext))
        trainer.engine.time_with(no_timer)
        stack.callback(trainer.engine.time_with, timed)
        yield


def milliseconds(trainer: Trainer, run: Any) -> float:
    """Return the time of a call, with the work that it queued on the device."""
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    start = clock()
    run()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return 1000 * (clock() - start)


def main() -> None:
    """Print both costs as fractions of a step."""
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
            # The order alternates, so that neither kind has the warmer caches.
            times = {}
            for kind in ("on", "off") if number % 2 else ("off", "on"):
                if kind == "on":
                    times[kind] = milliseconds(trainer, trainer.step)
                else:
                    with without_metrics(trainer):
                        times[kind] = milliseconds(trainer, trainer.step)
            pairs.append((times["on"], times["off"]))
            if number % 10 == 9:
                logs.append(milliseconds(trainer, lambda: trainer.log.run(trainer)))
        trainer.recorder.close()
        trainer.loader.close()
        report(trainer, options.gin.stem, pairs, logs)


def report(trainer: Trainer, name: str, pairs: list[tuple[float, float]], logs: list[float]) -> None:
    """Print medians over the run and over parts of it."""
    on, off = (median(each[kind] for each in pairs) for kind in (0, 1))
    per_interval = max(1, trainer.run_config.logging.every // trainer.run_config.batch_tokens)
    size = len(pairs) // BATCHES
    parts = [pairs[n * size : (n + 1) * size] for n in range(BATCHES)]
    ratios = [median(a / b for a, b in part) - 1 for part in parts if part]
    ratio, log = median(a / b for a, b in pairs) - 1, median(logs)
    once = log / per_interval / off
    print(f"{name}: {len(pairs)} steps of each kind on {trainer.device}")
    print(f"a step with metrics     {on:8.1f} ms (median)")
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
    """Return the device, the processor and the versions as text."""
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
