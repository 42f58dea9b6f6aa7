"""Handle the signals that end a run: all ranks finish the same step, then the run is saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import FrameType

import torch
import torch.distributed as dist

from mcframe.ending_signals import handle_ending_signals
from mcframe.errors import ONE_REQUEST_S, raise_interrupt


class StopSignal:
    """Record a requested stop. A second Ctrl-C raises Interrupt at once.

    Commands and launchers pass a Ctrl-C on as SIGTERM on top of the terminal's own SIGINT, so only SIGINT counts as a
    second request.
    """

    def __init__(self) -> None:
        self._number, self._since = 0, 0.0
        # A group on the CPU, so that agreeing on a stop never waits for the GPU.
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._group = None if alone else dist.new_group(backend="gloo")
        self._before = handle_ending_signals(self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._number:
            self._number, self._since = number, now
        elif number == signal.SIGINT and now - self._since > ONE_REQUEST_S:
            raise_interrupt()

    def agreed(self) -> int:
        """Return the signal that requested a stop on any rank, or 0. Collective: call it after the same step."""
        (number,) = self._largest([self._number])
        if number and not self._number:
            self._number, self._since = number, time.monotonic()
        return number

    def any_rank(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set on any rank. Collective, on the CPU."""
        return [bool(each) for each in self._largest(flags)]

    def _largest(self, numbers: Sequence[int]) -> list[int]:
        if self._group is None:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        return [int(each) for each in found.tolist()]

    def restore(self) -> None:
        """Restore the former handlers, unless a stop was requested: SIGTERM must not end its last lines."""
        for number, handler in () if self._number else self._before.items():
            signal.signal(number, handler)
