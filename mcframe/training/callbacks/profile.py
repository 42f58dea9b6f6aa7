"""Profile a few steps: a trace, the ten operations that take longest, and on a GPU its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from rich.text import Text
from torch.profiler import ProfilerActivity, profile

from mcframe.metrics.tables import FittedTable
from mcframe.metrics.timers import PHASES
from mcframe.training.callbacks.base import TrainerCallback

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer

FOLDER = "profile"
_ROWS = 10
_MEMORY_EVENTS = 200_000


class Profile(TrainerCallback):
    """Record the steps `after` to `after + steps` of this start, and write them to RUN/profile.

    Args:
        after: Steps before, which warm up.
        steps: Steps that are recorded.
    """

    watches = "the profile"

    def __init__(self, after: int = 3, steps: int = 3) -> None:
        super().__init__(0)
        self._after, self._steps = after, steps
        self._profiler: profile | None = None
        self._ended = False

    def due(self, trainer: Trainer) -> bool:
        """Return whether the steps that are recorded begin or end here."""
        if self._ended:
            return False
        step = trainer.state.step - trainer.first_step
        if self._profiler is None:
            return step == self._after and not trainer.state.finished
        return step >= self._after + self._steps or trainer.state.finished

    def __call__(self, trainer: Trainer) -> None:
        """Begin or end."""
        cuda = trainer.device.type == "cuda"
        if self._profiler is None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            self._profiler = profile(activities=activities, acc_events=True)
            if cuda:
                torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
            self._profiler.start()
        else:
            self._end(trainer, self._profiler, cuda)

    def _end(self, trainer: Trainer, profiler: profile, cuda: bool) -> None:
        """Write the trace of this rank; print the table of rank 0."""
        self._ended = True
        profiler.stop()
        folder, rank = trainer.plan.directory / FOLDER, dist.get_rank()
        folder.mkdir(exist_ok=True)
        if cuda:
            torch.cuda.memory._dump_snapshot(str(folder / f"memory-rank{rank}.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        trace = folder / f"trace-rank{rank}.json.gz"
        profiler.export_chrome_trace(str(trace))
        if rank == 0:
            progress = trainer.recorder.progress
            progress.message(_table(profiler.key_averages(), cuda))
            progress.message(Text(f"{trace}: for https://ui.perfetto.dev"))


def _table(events: Any, cuda: bool) -> FittedTable:
    """Return the operations with the longest time of their own, of the device if it is a GPU."""
    time = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(
        (event for event in events if event.key not in PHASES), key=lambda event: getattr(event, time), reverse=True
    )
    total = sum(getattr(event, time) for event in rows) or 1.0
    table = FittedTable(title="Operations that take longest")
    for name, justify in (("operation", "left"), ("calls", "right"), ("ms", "right"), ("fraction", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for event in rows[:_ROWS]:
        spent = getattr(event, time)
        table.add_row(event.key, f"{event.count:,}", f"{spent / 1000:,.1f}", f"{100 * spent / total:.1f} %")
    return table
