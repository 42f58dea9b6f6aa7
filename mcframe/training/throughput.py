"""Throughput, MFU and memory of a run, once a logging interval."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch

from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.mfu import device_peak, mfu
from mcframe.training.build import Components
from mcframe.training.flops import FlopCount
from mcframe.training.train_state import TrainState


class ThroughputMeter:
    """Throughput in a logging interval, without validation, samples and checkpoints.

    Args:
        components: The components of the run.
        state: Steps and tokens so far.
        micro_batch: Sequences of a rank's forward pass.
        world_size: The number of ranks.
        device: The device of this rank.
    """

    def __init__(
        self, components: Components, state: TrainState, *, micro_batch: int, world_size: int, device: torch.device
    ) -> None:
        self._components, self._state, self._micro_batch = components, state, micro_batch
        self._world_size, self._device = world_size, device
        self._noted = dict(components.flops.notes)  # printed in the start-up summary
        self.restart()

    def restart(self) -> None:
        """Start an interval."""
        self._tokens, self._step = self._state.tokens, self._state.step
        self._start, self._paused, self._pause = time.monotonic(), 0.0, time.monotonic()

    def pause(self) -> None:
        """Exclude the time from here to `resume`."""
        self._pause = time.monotonic()

    def resume(self) -> None:
        """Training resumes."""
        self._paused += time.monotonic() - self._pause

    def exclude(self, seconds: float) -> None:
        """Exclude seconds that have passed."""
        self._paused += seconds

    def metrics(self, report: Callable[[str], None]) -> dict[str, float]:
        """Return tokens per second; MFU if the device's peak is known, and HFU if something is recomputed.

        Args:
            report: Receives a note for each value that cannot be computed, which is then not logged, and for each
                operation that cannot be counted, when that changes.
        """
        elapsed = time.monotonic() - self._start - self._paused
        rate = (self._state.tokens - self._tokens) / max(1e-9, elapsed)
        found = {"train/tok_per_sec": rate}
        peak = self._peak()
        if peak is None:
            return found
        costs = self._mean_cost()
        for name, note in self._components.flops.notes.items():
            if self._noted.get(name) != note:
                report(f"note: FLOPs of {name}: {note}")
        self._noted = dict(self._components.flops.notes)
        flops = {"train/mfu": costs.total}
        if costs.recomputed:
            flops["train/hfu"] = costs.total + costs.recomputed
        for name, each in flops.items():
            try:
                found[name] = mfu(each * rate, peak, self._world_size)
            except ValueError as error:
                report(f"note: {name}: {error}")
        return found

    def _peak(self) -> float | None:
        """FLOP/s of this rank's device in the run's precision; None where unknown."""
        if self._device.type != "cuda":
            return None
        precision = torch.bfloat16 if self._components.run_config.deepspeed.precision == "bf16" else torch.float32
        return device_peak(torch.cuda.get_device_name(self._device), precision)

    def _mean_cost(self) -> FlopCount:
        """FLOPs a dataset token over the logging interval, whose steps may differ in length."""
        steps = range(self._step, self._state.step)
        each = Counter(self._cost(step) for step in steps)
        total = sum(cost.total * n for cost, n in each.items())
        recomputed = sum(cost.recomputed * n for cost, n in each.items())
        n = max(1, len(steps))
        return FlopCount(self._cost(self._step).plain, total / n, recomputed / n)

    def _cost(self, step: int) -> FlopCount:
        run_config = self._components.run_config
        length = run_config.variant_length(step) if self._components.model.strategy.count else 0
        return self._components.flops.at(length, run_config.progress(step), self._micro_batch)


def memory(device: torch.device) -> StepMetrics:
    """Peaks of this rank in GiB: resident memory of its process so far, and on a GPU of tensors since the last call."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"train/rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peaks["train/memory_gib"] = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    return StepMetrics(samples={name: torch.tensor([size / 2**30], device=device) for name, size in peaks.items()})
