"""End a run in which ranks wait for one that has stopped, hangs, or waits in another collective."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple, Protocol

import torch

import mcframe
from mcframe.errors import UserError

HANG_FACTOR = 5
"""Multiples of the limit after which a rank that still responds is taken for hung."""
_TICKS = 12
"""Looks within the limit, at least; one a second otherwise."""
START_S = 60.0
"""The shortest time that a start waits for a rank that has not begun, or hangs."""
_ENDED_S = 10.0
"""Seconds in which the main thread notices that another rank has ended, and reports what it waited for."""
_SILENT_S = 3.0
"""The shortest time without a sign of life that counts."""

_TORCH, _MCFRAME = str(Path(torch.__file__).parent), str(Path(mcframe.__file__).parent)
_COLLECTIVES = str(Path(_TORCH, "distributed", "distributed_c10d.py"))
_MAY_BE_SLOW = (
    f"{_MCFRAME}/training/callbacks/", f"{_MCFRAME}/evaluation/", f"{_MCFRAME}/data/", f"{_TORCH}/_dynamo/",
    f"{_TORCH}/_inductor/", f"{_MCFRAME}/metrics/", f"{_MCFRAME}/registry/lifecycle.py",
)  # fmt: skip
"""Code that one rank may run for long while others wait: evaluations, checkpoints, loggers, data, locks, compiling."""
_WRITER = f"{_MCFRAME}/training/checkpoint_writer.py"


class Store(Protocol):
    """A key-value store of all ranks."""

    def set(self, key: str, value: str) -> None:
        """Set a value."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Return values."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are set."""


class Sign(NamedTuple):
    """A sign of life of a rank: its number, and for how many seconds its main thread has done what, at which line."""

    number: int
    does: Literal["waits", "works", "may be slow"]
    seconds: int
    line: str


FIRST_SIGN = "\n".join(map(str, Sign(0, "works", 0, "its start")))
"""The sign of a rank that has started, before its watch."""


def sign_keys(world_size: int, serial: int = 0) -> list[str]:
    """Return the key of each rank's sign of life in the store."""
    return [f"mcframe/signs/{serial}/{rank}" for rank in range(world_size)]


class StallWatch(threading.Thread):
    """Publish from time to time what the main thread of this rank does, and look at the others while it waits.

    A rank of a GPU that waits in a kernel is not seen until its next collective on the CPU, at the end of the step.

    Args:
        store: The store of the group of processes.
        rank: This rank.
        world_size: The number of ranks.
        stalled: Called with the error if the wait of this rank will not end.
        limit: Seconds of waiting for a rank without a sign of life, or for ranks that wait at another line.
        serial: Number of the run in this group of processes.
        starts: Whether the run starts. The limit is then longer, and no process may end.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        stalled: Callable[[UserError], None],
        limit: float,
        *,
        serial: int = 0,
        starts: bool = False,
    ) -> None:
        super().__init__(daemon=True, name="mcframe stall watch")
        self._store, self._rank, self._stalled = store, rank, stalled
        self._in_training, self._starts = limit, starts
        self._keys = sign_keys(world_size, serial)
        self._main, self._ended = threading.main_thread().ident, threading.Event()
        self._held: object = None
        self._number, self._seconds = 0, 0.0
        self._seen: dict[int, tuple[int, float]] = {}

    @property
    def _limit(self) -> float:
        return max(self._in_training, START_S / HANG_FACTOR) if self._starts else self._in_training

    @property
    def _tick(self) -> float:
        return max(0.1, min(1.0, self._limit / _TICKS))

    def begin_training(self) -> None:
        """Note that the start is complete."""
        self._starts = False

    def end(self) -> None:
        """Stop looking, and wait for the thread: at the end of the process, a call of the store would abort it."""
        self._ended.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Look, until the end of the run or of its progress."""
        last = time.monotonic()
        while not self._ended.wait(self._tick):
            # A process that was stopped has not waited meanwhile.
            now = time.monotonic()
            passed, last = min(now - last, 2 * self._tick), now
            try:
                error = self.look(passed)
            except RuntimeError:  # the process that holds the store has ended
                if not self._starts or self._ended.wait(_ENDED_S):
                    return
                error = ended_in_start_up(self._rank, len(self._keys))
            if error is not None and not self._ended.is_set():
                self._stalled(error)
                return

    def look(self, passed: float) -> UserError | None:
        """Publish a sign of life, `passed` seconds after the last. Return the error if the wait will not end."""
        frame = sys._current_frames().get(self._main or 0)
        call = _collective(frame)
        does: Literal["waits", "works", "may be slow"]
        does = "waits" if call is not None else "may be slow" if _may_be_slow(frame) else "works"
        blocked = call or _checkpoint_wait(frame)  # which may be slow if every rank shows a sign of life
        held = blocked or does  # the frame that is held cannot become that of another call
        self._seconds = self._seconds + passed if held is self._held else 0.0
        self._held, self._number = held, self._number + 1
        own = Sign(self._number, does, int(self._seconds), _line(call or frame))
        self._store.set(self._keys[self._rank], "\n".join(map(str, own)))
        if blocked is None or self._seconds < self._limit / 2:
            self._seen = {}
            return None
        signs = self._read()
        if signs is None:
            return None
        silent = self._silent(signs, passed)
        # Without an answer half of the limit has passed once more, and any further request would wait for ever.
        return self._compare(signs, silent) if self._seconds > self._limit or not signs else None

    def lost(self) -> list[int]:
        """Return the ranks without a sign of life for a few seconds. Called when the connection to one was lost."""
        before = self._read()
        time.sleep(max(3 * self._tick, _SILENT_S) if before else 0)
        after = self._read()
        if not before or not after:
            return [0] if after == [] else []
        return [rank for rank, sign in enumerate(before) if sign.number == after[rank].number]

    def _read(self) -> list[Sign] | None:
        """Return the latest sign of every rank, none if rank 0 does not respond, or None before all have started.

        Rank 0 holds the store. Once it has stopped, requests remain without an answer.
        """
        found: list[list[Sign] | None] = []

        def read() -> None:
            with suppress(RuntimeError):
                started = self._store.check(self._keys)
                found.append(list(map(_sign, self._store.multi_get(self._keys))) if started else None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(max(self._limit / 2, _SILENT_S))
        return found[0] if found else []

    def _silent(self, signs: Sequence[Sign], passed: float) -> list[int]:
        """Return the ranks whose sign of life has not changed for half the limit."""
        if not signs:
            return [0]
        for rank, sign in enumerate(signs):
            number, seconds = self._seen.get(rank, (-1, 0.0))
            self._seen[rank] = (sign.number, seconds + passed if number == sign.number else 0.0)
        least = max(self._limit / 2 - 2 * self._tick, _SILENT_S)
        return [rank for rank, (_, seconds) in self._seen.items() if seconds >= least and rank != self._rank]

    def _compare(self, signs: Sequence[Sign], silent: Sequence[int]) -> UserError | None:
        limit, hung = self._limit, HANG_FACTOR * self._limit
        if silent:
            last = signs[silent[0]].line if signs else "an unknown line"
            return UserError(
                f"{_ranks(silent)} of {len(self._keys)} stopped: no sign of life while rank {self._rank} waited for "
                f"{limit:g} s; last seen at {last}",
                remedy="Look for a process that was stopped (SIGSTOP), killed, or has no memory left (`dmesg` shows "
                "it), or a machine that is cut off. The same command resumes from the last checkpoint.",
            )
        waits = all(sign.does == "waits" and sign.seconds > limit for sign in signs)
        if waits and (len({sign.line for sign in signs}) > 1 or self._seconds > hung):
            return UserError(
                f"the ranks have waited for each other for {min(sign.seconds for sign in signs)} s: "
                + "; ".join(f"rank {rank} at {sign.line}" for rank, sign in enumerate(signs)),
                remedy="Make the same calls on every rank: a collective, an evaluation, or a forward pass at ZeRO 3, "
                "that only some ranks make never ends. At the same line, look for a broken network.",
            )
        works = [rank for rank, sign in enumerate(signs) if sign.does == "works" and sign.seconds > hung]
        if works and self._seconds > hung:
            return UserError(
                f"{_ranks(works)} of {len(signs)} hangs: rank {self._rank} has waited for it for {self._seconds:.0f} "
                f"s; it is at {signs[works[0]].line}",
                remedy="Correct what runs at that line, or raise run.stall_seconds if it may take so long.",
            )
        return None


def ended_in_start_up(rank: int, world_size: int) -> UserError:
    """Return the error of a rank that waits for the process of the store, without limit in torch."""
    return UserError(
        f"rank 0 of {world_size} ended in start-up, which rank {rank} waited for",
        remedy="Look for its error above, or for a process that was killed (`dmesg` shows it). Repeat the command.",
    )


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _sign(value: bytes) -> Sign:
    number, does, seconds, line = value.decode().split("\n", 3)
    return Sign(int(number), does, int(seconds), line)  # type: ignore[arg-type]  # one of the three


def _collective(frame: FrameType | None) -> FrameType | None:
    """Return the outermost frame of torch's collectives around a frame, or None."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename == _COLLECTIVES:
            found = frame
        frame = frame.f_back
    return found


def _checkpoint_wait(frame: FrameType | None) -> FrameType | None:
    """Return the frame that waits for a checkpoint of all ranks, or None."""
    while frame is not None:
        if frame.f_code.co_filename == _WRITER and frame.f_code.co_name == "wait":
            return frame
        frame = frame.f_back
    return None


def _may_be_slow(frame: FrameType | None) -> bool:
    """Return whether a frame is inside code that one rank may run for long."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_MAY_BE_SLOW):
            return True
        frame = frame.f_back
    return False


def _line(frame: FrameType | None) -> str:
    """Return the innermost line outside torch and DeepSpeed around a frame."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_TORCH) and "/deepspeed/" not in file and not file.endswith("/contextlib.py"):
            return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "an unknown line"
