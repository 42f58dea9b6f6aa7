"""End a run whose ranks wait for each other in different collectives, which none of them would ever leave."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch

from mcframe.errors import UserError

LIMIT_S = 60.0
"""Seconds of waiting after which a rank tells the others where it waits."""

_TORCH = str(Path(torch.__file__).parent)
_COLLECTIVES = str(Path(_TORCH, "distributed", "distributed_c10d.py"))


class Store(Protocol):
    """A key-value store that all ranks share."""

    def set(self, key: str, value: str) -> None:
        """Set a value."""

    def get(self, key: str) -> bytes:
        """Return a value."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are set."""


class StallWatch(threading.Thread):
    """Look from time to time at the place where the main thread of this rank waits. Costs a run nothing.

    Ranks that wait in one collective only wait for a slow one. A rank of a GPU waits in a kernel, which is not seen.

    Args:
        store: The store of the group of processes.
        rank: This rank.
        world_size: The number of ranks.
        stalled: Called with the error if all ranks wait, not all of them at one place.
        limit: Seconds of waiting.
    """

    def __init__(
        self, store: Store, rank: int, world_size: int, stalled: Callable[[UserError], None], limit: float | None = None
    ) -> None:
        super().__init__(daemon=True, name="mcframe stall watch")
        self._store, self._rank, self._stalled = store, rank, stalled
        self._keys = [f"mcframe/waits/{rank}" for rank in range(world_size)]
        self._limit = LIMIT_S if limit is None else limit
        self._main, self._ended = threading.main_thread().ident, threading.Event()
        self._call: FrameType | None = None
        self._since = 0.0
        self._reported = False

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()

    def run(self) -> None:
        """Look, until the end of the run or of its progress."""
        while not self._ended.wait(self._limit / 10):
            try:
                error = self.look()
            except RuntimeError:  # the process that holds the store has ended
                return
            if error is not None and not self._ended.is_set():
                self._stalled(error)
                return

    def look(self) -> UserError | None:
        """Return the error if all ranks wait at different places, else None."""
        frame = sys._current_frames().get(self._main or 0)
        call = _collective(frame)
        if call is None or call is not self._call:  # the frame that is held cannot become that of another call
            self._call, self._since = call, time.monotonic()
            if self._reported:
                self._store.set(self._keys[self._rank], "")
                self._reported = False
        elif time.monotonic() - self._since > self._limit:
            self._store.set(self._keys[self._rank], _place(call))
            self._reported = True
            return self._compare()
        return None

    def _compare(self) -> UserError | None:
        if not self._store.check(self._keys):
            return None
        places = [self._store.get(key).decode() for key in self._keys]
        if not all(places) or len(set(places)) == 1:
            return None
        return UserError(
            f"the ranks have waited for each other for {self._limit:g} s: "
            + "; ".join(f"rank {rank} at {place}" for rank, place in enumerate(places)),
            remedy="Make the same calls on every rank: a collective, an evaluation, or a forward pass at ZeRO 3, that "
            "only some ranks make never ends.",
        )


def _collective(frame: FrameType | None) -> FrameType | None:
    """Return the outermost frame of torch's collectives around a frame, or None."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename == _COLLECTIVES:
            found = frame
        frame = frame.f_back
    return found


def _place(frame: FrameType | None) -> str:
    """Return the innermost line outside torch and DeepSpeed around a frame."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_TORCH) and "/deepspeed/" not in file and not file.endswith("/contextlib.py"):
            return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "an unknown line"
