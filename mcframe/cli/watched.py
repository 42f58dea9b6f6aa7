"""The watch over the other ranks of a run, from the start on: a wait that will not end cannot be left otherwise."""

from __future__ import annotations

import functools
import itertools
import os
from types import TracebackType
from typing import NoReturn, Self

from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import EXIT_USER_ERROR, UserError, is_lost_connection
from mcframe.training.stall import HANG_FACTOR, START_S, StallWatch, Store

_serials = itertools.count()


class Watched:
    """A context in which a rank that the others wait for in vain ends the process.

    Args:
        limit: `run.stall_seconds`.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._watch: StallWatch | None = None

    @property
    def start_limit(self) -> float:
        """Seconds to wait for the start of other ranks."""
        return max(START_S, HANG_FACTOR * self._limit)

    def begin(self, store: Store) -> None:
        """Start to watch: every rank has started."""
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._watch = StallWatch(store, rank, world_size, _end, self._limit, serial=next(_serials), starts=True)
        self._watch.start()

    def begin_training(self) -> None:
        """Note that the start is complete."""
        if self._watch is not None:
            self._watch.begin_training()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watch is not None:
            if error is not None and is_lost_connection(error):
                error.add_note(f"no sign of life of rank {', '.join(map(str, self._watch.lost()))}")
            self._watch.end()


def _end(error: UserError) -> None:
    try:
        report_user_errors(functools.partial(_raise, error), traceback=False)
    finally:  # also where the message cannot be printed
        os._exit(EXIT_USER_ERROR)


def _raise(error: UserError) -> NoReturn:
    raise error
