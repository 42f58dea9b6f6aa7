"""Timers of the phases of an optimizer step. They do not wait for the device.

On a GPU a phase is the time between two events in its stream, idle gaps included; on a CPU it is the time between two
readings of the clock. Phases never nest. The step has a timer of its own, so that the sum of the phases is a check.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol, cast

import torch
from torch.autograd import profiler
from torch.profiler import record_function

from mcframe.context.step_metrics import StepMetrics

_CONTROLLER, _OVERHEAD = "mc/controller_ms", "mc/overhead_ms"

PHASES: dict[str, tuple[str, ...]] = {
    "data": ("train/data_ms",),
    "base": ("train/base_ms",),
    "forward": ("train/forward_ms",),
    "build": ("mc/build_ms", _CONTROLLER),
    "sampling": ("mc/variant_ms", _CONTROLLER, _OVERHEAD),
    "variant": ("mc/variant_ms", _CONTROLLER),
    "pack": ("mc/variant_pack_ms", _CONTROLLER, _OVERHEAD),
    "lens": ("mc/lens_ms", _CONTROLLER),
    "lens bookkeeping": ("mc/lens_ms", _CONTROLLER, _OVERHEAD),
    "losses": ("train/losses_ms",),
    "metrics": ("train/metrics_ms", _OVERHEAD),
    "backward": ("train/backward_ms",),
    "optimizer": ("train/optimizer_ms",),
}
"""Phases of a step, and the timers to which each is added. Apart from `mc/controller_ms` and `mc/overhead_ms`, no two
timers of a step have a phase in common."""

PARTS = ("mc/build_ms", "mc/variant_ms", "mc/variant_pack_ms", "mc/lens_ms")
"""The parts of `mc/controller_ms`. A step with variants has all of them, 0 for a missing part."""

STEP, OTHER = "train/step_ms", "mc/other_ms"

OTHER_PARTS = tuple(timer for timers in PHASES.values() for timer in timers if timer.startswith("train/"))
"""The measured parts of `mc/other_ms`."""

DECLARED_METRICS = {
    "mc/build_ms": ("ms", "lower", "building the node table"),
    "mc/variant_ms": ("ms", "lower", "sampling variants, their forward pass and its loss"),
    "mc/variant_pack_ms": ("ms", "lower", "gathering the variants' embeddings"),
    "mc/lens_ms": ("ms", "lower", "LensNet's forward pass and loss"),
    "mc/other_ms": ("ms", "lower", "train/step_ms without mc/controller_ms: the remainder of the step"),
    "mc/controller_ms": ("ms", "lower", "build, variant, variant_pack and lens together"),
    "mc/overhead_ms": ("ms", "lower", "time outside networks: sampling, packing, metrics, LensNet's bookkeeping"),
    "train/step_ms": ("ms", "lower", "an optimizer step with its data, timed as one interval"),
    "train/data_ms": ("ms", "lower", "part of mc/other_ms: waiting for sequences and moving them to the device"),
    "train/base_ms": ("ms", "lower", "part of mc/other_ms: the uncompressed forward pass and its loss"),
    "train/forward_ms": ("ms", "lower", "the forward pass of a step that is one graph (run.compile), without phases"),
    "train/losses_ms": ("ms", "lower", "part of mc/other_ms: losses with forward passes of their own"),
    "train/metrics_ms": ("ms", "lower", "part of mc/other_ms: computing and accumulating metrics"),
    "train/backward_ms": ("ms", "lower", "part of mc/other_ms: the backward pass of all parts"),
    "train/optimizer_ms": ("ms", "lower", "part of mc/other_ms: DeepSpeed's step"),
}


class Mark(Protocol):
    """A moment on the device, such as a `torch.cuda.Event`."""

    def query(self) -> bool:
        """Return True if the device has reached the mark. Does not wait."""

    def synchronize(self) -> None:
        """Wait until the device has reached the mark."""

    def elapsed_time(self, end: Mark, /) -> float:
        """Return the milliseconds from this mark to `end`; the device has reached both."""


class HostMark:
    """This moment on the host's clock; reached at once."""

    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        """Return True."""
        return True

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, end: Mark, /) -> float:
        """Return the milliseconds from this mark to `end`."""
        return 1000 * (cast(HostMark, end).seconds - self.seconds)


def device_mark() -> Mark:
    """Return a mark after the work that is queued in the current CUDA stream. Does not wait."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return cast(Mark, event)


class Timers:
    """Milliseconds in each phase of this rank's steps, added up until they are collected.

    Args:
        device: device of the step and of the tensors that `collect` returns.
        mark: makes a mark at this moment; by default a CUDA event on a GPU, else a `HostMark`.
    """

    def __init__(self, device: torch.device, mark: Callable[[], Mark] | None = None) -> None:
        self._device = device
        self._mark: Callable[[], Mark] = mark or (device_mark if device.type == "cuda" else HostMark)
        self._pending: deque[tuple[str, Mark, Mark]] = deque()
        self._ms = defaultdict[str, float](float)
        self._in_step, self._steps = False, 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time an optimizer step."""
        self._in_step, start = True, self._mark()
        try:
            yield
        finally:
            self._in_step = False
        self._pending.append((STEP, start, self._mark()))
        self._steps += 1
        # Reading finished marks here keeps the queue short over a long interval.
        while self._pending and self._pending[0][2].query():
            self._add_next()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of `PHASES`; outside a step nothing is timed."""
        if not self._in_step:
            yield
            return
        assert name in PHASES, name
        start = self._mark()
        with record_function(name) if profiler._is_profiler_enabled else nullcontext():  # a span in profiles
            yield
        self._pending.append((name, start, self._mark()))

    def collect(self) -> StepMetrics:
        """Return the timers since the last call as means over steps; empty without a step. Waits for the last step."""
        if self._pending:
            self._pending[-1][2].synchronize()
        while self._pending:
            self._add_next()
        timers = _timers(self._ms)
        rows = torch.tensor([(ms, self._steps) for ms in timers.values()], dtype=torch.float64).reshape(-1, 2)
        self._ms.clear()
        self._steps = 0
        return StepMetrics(means=dict(zip(timers, rows.to(self._device), strict=True)))

    def _add_next(self) -> None:
        name, start, end = self._pending.popleft()
        self._ms[name] += start.elapsed_time(end)


def _timers(phases: Mapping[str, float]) -> dict[str, float]:
    """Return timers in ms from the sums of the phases; those of working contexts only for steps with variants."""
    with_variants = any(_CONTROLLER in PHASES.get(phase, ()) for phase in phases)
    timers = dict.fromkeys(PARTS, 0.0) if with_variants else {}
    for phase, ms in phases.items():
        for timer in PHASES.get(phase, (phase,)):
            if with_variants or not timer.startswith("mc/"):
                timers[timer] = timers.get(timer, 0.0) + ms
    if with_variants:
        timers[OTHER] = phases[STEP] - timers[_CONTROLLER]
    return timers
