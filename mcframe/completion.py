"""Proof that rank 0 has finished: DeepSpeed's runner also returns 0 if the process that starts the ranks is killed."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

UNFINISHED = "MCFRAME_UNFINISHED"
"""Environment variable with an empty file that rank 0 removes once it has finished. A full disk does not prevent it."""
_PREFIX = "mcframe-unfinished-"


class Completion:
    """The file of a command that starts ranks. Where it cannot be created, no proof is required.

    The command holds a `flock` on it: a file without one is of a command that was killed.
    """

    def __init__(self) -> None:
        self._number, self._file = -1, Path()
        _remove_stale()
        with suppress(OSError):
            self._number, name = tempfile.mkstemp(prefix=_PREFIX)
            self._file = Path(name)
            fcntl.flock(self._number, fcntl.LOCK_EX)

    def announce(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the ranks."""
        return {**environment, **({UNFINISHED: str(self._file)} if self._number >= 0 else {})}

    def end(self) -> bool:
        """Return whether rank 0 has finished, and remove the file."""
        if self._number < 0:
            return True
        finished = os.fstat(self._number).st_nlink == 0
        with suppress(OSError):
            self._file.unlink()
        os.close(self._number)
        self._number = -1
        return finished


def take_unfinished() -> Path | None:
    """Return the file that this rank has to remove once it has finished. Processes that it starts do not see it."""
    file = os.environ.pop(UNFINISHED, "")
    return Path(file) if file and os.environ.get("RANK") == "0" else None


def _remove_stale() -> None:
    for file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # of another user, of a command that runs, or removed meanwhile
            number = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
            finally:
                os.close(number)
