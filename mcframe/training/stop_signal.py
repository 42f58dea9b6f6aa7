"""Handle Ctrl-C and SIGTERM: all ranks finish the same step, then the run is saved."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

import torch
import torch.distributed as dist

from mcframe.errors import raise_interrupt


class StopSignal:
    """Record a requested stop. A second Ctrl-C raises Interrupt at once.

    The launcher passes a Ctrl-C on as SIGTERM on top of the terminal's own SIGINT, so SIGTERM never counts twice.
    """

    def __init__(self) -> None:
        self._requested = False
        # A group on the CPU, so that agreeing on a stop never waits for the GPU.
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._group = None if alone else dist.new_group(backend="gloo")
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._requested:
            raise_interrupt()
        self._requested = True

    def agreed(self) -> bool:
        """Return whether a stop was requested on any rank. Collective: every rank must call it after the same step."""
        return self.any_rank([self._requested])[0]

    def any_rank(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set on any rank. Collective, on the CPU."""
        if self._group is None:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(each) for each in found.tolist()]

    def restore(self) -> None:
        """Restore the former signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
