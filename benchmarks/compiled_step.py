"""Compare a compiled training step with an eager one, in turn in one process: `python benchmarks/compiled_step.py`.

Processor seconds of forward and backward on a CPU, wall-clock seconds on a GPU; medians. Exits with 1 if the compiled
step is slower. Compiling quickstart's step takes minutes on a CPU; the next start takes the graph from torch's cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.training.build import build_step
from mcframe.training.compiled_step import CompiledStep
from mcframe.training.device_settings import keep_freed_memory
from mcframe.training.train_step import StepBatch, TrainStep

BYTES_AND_SEPARATOR = 257


def seconds_of(step: TrainStep, batch: StepBatch) -> float:
    """Return the seconds of a forward and a backward pass."""
    cuda = batch.tokens.device.type == "cuda"
    clock: Callable[[], float] = time.perf_counter if cuda else time.process_time
    step.zero_grad()
    started = clock()
    step(batch)[0].backward()
    if cuda:
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    """Measure, and print one line a step kind and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gin", default="quickstart.gin")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--steps", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()
    run_config = load_run_config([options.gin], options.set).run_config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        step = build_step(run_config, BYTES_AND_SEPARATOR)
        tokens = torch.randint(256, (run_config.micro_batch, run_config.context.window + 1))
        seeds = variant_seeds(0, torch.arange(len(tokens)), step.model.strategy.count)
    batch = StepBatch(tokens, seeds, run_config.variant_length(0) if step.model.strategy.count else 0)
    compiled = CompiledStep(run_config.compile or True)
    modes = {"eager": None, "compiled": compiled}
    found: dict[str, list[float]] = {name: [] for name in modes}
    for number in range(options.steps + 2):
        for name, how in modes.items():
            step.compiled = how
            seconds = seconds_of(step, batch)
            if number >= 2:  # the first passes compile and warm up
                found[name].append(seconds)
    eager, fast = (statistics.median(found[name]) for name in modes)
    print(f"eager {eager:.3f} s, compiled {fast:.3f} s: ratio {fast / eager:.3f}; compiled in {compiled.seconds:.0f} s")
    raise SystemExit(fast > eager)


if __name__ == "__main__":
    main()
