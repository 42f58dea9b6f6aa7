"""Where the time of an optimizer step goes, measured without waiting for the device.

On a GPU a phase is the time between two events in its stream, so idle gaps count, as they do for whoever waits; on a
CPU it is the time between two readings of the clock. Every phase has its own pair: the whole step is timed beside
them and not put together from them, so that their sum is a check. Phases never nest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch

from mcframe.context.step_metrics import StepMetrics

_CONTROLLER, _OVERHEAD = "mc/controller_ms", "mc/overhead_ms"

PHASES: dict[str, tuple[str, ...]] = {
    "data": ("train/data_ms",),
    "base": ("train/base_ms",),
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
"""The phases of a step, and the timers that each counts into. No two timers of one step but `mc/controller_ms` and
`mc/overhead_ms` share a phase."""

PARTS = ("mc/build_ms", "mc/variant_ms", "mc/variant_pack_ms", "mc/lens_ms")
"""What `mc/controller_ms` adds up. A step with variants reports all of them, 0 where it lacks the part."""

STEP, OTHER = "train/step_ms", "mc/other_ms"

OTHER_PARTS = tuple(timer for timers in PHASES.values() for timer in timers if timer.startswith("train/"))
"""What is timed on its own of `mc/other_ms`."""


class Mark(Protocol):
    """A moment. A `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether it has come; does not wait."""

    def synchronize(self) -> None:
        """Wait for it."""

    def elapsed_time(self, end: Mark, /) -> float:
        """Milliseconds from this mark to `end`; both have come."""


class HostMark:
    """This moment, by the host's clock."""

    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        """It has come."""
        return True

    def synchronize(self) -> None:
        """It has come."""

    def elapsed_time(self, end: Mark, /) -> float:
        """Milliseconds from this mark to `end`."""
        return 1000 * (cast(HostMark, end).seconds - self.seconds)


def device_mark() -> Mark:
    """A mark at the end of what the current CUDA stream has been given so far; does not wait."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return cast(Mark, event)


class Timers:
    """The phases of this rank's steps, in milliseconds, added up until they are collected.

    device  where the step runs, and where `collect` puts its tensors
    mark    makes a mark at this moment; by default an event on a GPU, the host's clock elsewhere
    """

    def __init__(self, device: torch.device, mark: Callable[[], Mark] | None = None) -> None:
        self._device = device
        self._mark: Callable[[], Mark] = mark or (device_mark if device.type == "cuda" else HostMark)
        self._waiting: deque[tuple[str, Mark, Mark]] = deque()
        self._open = False
        self._clear()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Everything inside is one optimizer step."""
        self._open, start = True, self._mark()
        try:
            yield
        finally:
            self._open = False
        self._waiting.append((STEP, start, self._mark()))
        self._steps += 1
        # What has come by now is taken in, so that nothing piles up over a long interval.
        while self._waiting and self._waiting[0][2].query():
            self._take()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside counts to this phase of `PHASES`; outside a step it counts to none."""
        if not self._open:
            yield
            return
        assert name in PHASES, name
        start = self._mark()
        yield
        self._waiting.append((name, start, self._mark()))

    def collect(self) -> StepMetrics:
        """What has been timed since the last call, a mean over steps and ranks by timer; nothing where no step was.

        Waits for the last step: at the end of an interval only.
        """
        if self._waiting:
            self._waiting[-1][2].synchronize()
        while self._waiting:
            self._take()
        timers = _timers(self._sums)
        rows = torch.tensor([(ms, self._steps) for ms in timers.values()], dtype=torch.float64).reshape(-1, 2)
        statistics = StepMetrics(means=dict(zip(timers, rows.to(self._device), strict=True)))
        self._clear()
        return statistics

    def _take(self) -> None:
        name, start, end = self._waiting.popleft()
        self._sums[name] = self._sums.get(name, 0.0) + start.elapsed_time(end)

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0


def _timers(phases: dict[str, float]) -> dict[str, float]:
    """Timers in ms from the sums of the phases; those of working contexts only where there were some."""
    varied = any(_CONTROLLER in PHASES.get(phase, ()) for phase in phases)
    timers = dict.fromkeys(PARTS, 0.0) if varied else {}
    for phase, ms in phases.items():
        for timer in PHASES.get(phase, (phase,)):
            if varied or not timer.startswith("mc/"):
                timers[timer] = timers.get(timer, 0.0) + ms
    if varied:
        timers[OTHER] = phases[STEP] - timers[_CONTROLLER]
    return timers
