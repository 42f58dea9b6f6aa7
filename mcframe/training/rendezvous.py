"""The meeting of all ranks at the start of a run, with a time limit and the names of those that are missing.

torch waits for half an hour, and DeepSpeed's CPU communication op for ever, with the interpreter locked. Every rank
therefore reports before both, and creates the buffer that the op of another rank waits for.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from mcframe.errors import UserError
from mcframe.training.stall import FIRST_SIGN, Store, ended_in_start_up, sign_keys

_POLL_S = 0.1
_FOLDER = Path("/dev/shm")
_OF_DEEPSPEED = 66 * 2**20 + 8
"""Bytes that DeepSpeed writes to a buffer. One byte more marks those that are created here."""


def await_ranks(rank: int, world_size: int, limit: float) -> Store:
    """Wait until every rank has called this, and return a store of all ranks.

    Args:
        rank: This rank.
        world_size: The number of ranks, at least 2.
        limit: Seconds to wait.

    Raises:
        UserError: A rank is missing after the limit, or the process of rank 0 has ended.
        DistNetworkError: Another program has the port.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    holds = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # as torch decides
    until = time.monotonic() + limit
    while not holds and not _listens(address, port):
        if time.monotonic() > until:
            raise _missing([0], rank, world_size, limit)
        time.sleep(_POLL_S)
    store: Store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world_size, holds, timedelta(seconds=limit), wait_for_workers=False, multi_tenant=True
    )
    keys = sign_keys(world_size)
    try:
        store.set(keys[rank], FIRST_SIGN)
        while not store.check(keys):
            if time.monotonic() > until:
                missing = [each for each, key in enumerate(keys) if not store.check([key])]
                raise _missing(missing, rank, world_size, limit)
            time.sleep(_POLL_S)
    except RuntimeError as error:
        raise ended_in_start_up(rank, world_size) from error
    return store


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def _missing(ranks: list[int], rank: int, world_size: int, limit: float) -> UserError:
    named = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    return UserError(
        f"{named} of {world_size} did not start within {limit:g} s after rank {rank}",
        remedy="Look for an error above, or for a process that was killed (`dmesg` shows it), and repeat the command. "
        "Raise run.stall_seconds if the machines start at different times.",
    )


class SharedBuffer:
    """The file of a rank in /dev/shm for DeepSpeed's CPU communication op, which would not remove it after a run.

    The rank holds a `flock` on it until it is removed: a file without one is of a process that was killed.
    """

    def __init__(self, rank: int) -> None:
        port = os.environ.get("MASTER_PORT", "")
        prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_"
        self._file = _FOLDER / f"{prefix}{os.environ.get('MASTER_ADDR', '')}_{port}_{rank}"
        self._number = -1
        _remove_stale(prefix)
        with suppress(OSError):  # a missing or full /dev/shm is reported later, or not used
            self._number = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._number, _OF_DEEPSPEED + 1)

    def remove(self) -> None:
        """Remove the file, once every rank has mapped it. A later run on the same port finds no old buffer."""
        self._file.unlink(missing_ok=True)
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


def _remove_stale(prefix: str) -> None:
    """Remove buffers of this user that runs have created and left."""
    for file in _FOLDER.glob(f"{prefix}*"):
        with suppress(OSError):  # of a run that starts now, or removed meanwhile
            number = os.open(file, os.O_RDONLY)
            try:
                if os.fstat(number).st_size == _OF_DEEPSPEED + 1:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()
            finally:
                os.close(number)
