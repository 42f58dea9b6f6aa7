"""The lock of a run directory: one run at a time writes to it, on any node."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psutil

from mcframe.errors import Location, UserError
from mcframe.files import unwritable
from mcframe.safe_text import redacted

LOCK = "running.json"
REFRESH_S = 15.0
"""Seconds between two refreshes of the lock's modification time."""
LAPSE_S = 90.0
"""Seconds without a refresh after which the lock of another machine no longer counts."""
_POLL_S = 0.5
_SAME_START_S = 2.0
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_log = logging.getLogger(__name__)


class RunLock:
    """Holds `running.json` in a run directory from `take` until the end of the context or of the process.

    The system releases a `flock` with its process. On a shared file system, `flock` may hold on one machine only: the
    file therefore names host, process and start time of its owner, and its modification time is refreshed.

    A start that ends before `confirm` leaves the directory as it was.

    Args:
        directory: The run directory, or the folder of a sweep.
        option: The option of the command that names it, for messages.
    """

    def __init__(self, directory: Path, option: str = "--run-dir") -> None:
        self._path, self._option = directory / LOCK, option
        self._created: list[Path] = []
        self._ended, self._before = threading.Event(), b""
        self._file, self._confirmed = -1, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> None:
        """Take the lock. The directory is created if it is missing.

        Raises:
            UserError: Another run has the directory, or the file cannot be written.
        """
        folder = self._path.parent
        self._created = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._take()
        except OSError as error:
            raise unwritable(error) from error
        # A forked child that outlives this process must not hold the lock.
        os.register_at_fork(after_in_child=self._close)
        threading.Thread(target=self._refresh, name="mcframe-run-lock", daemon=True).start()

    def confirm(self) -> None:
        """Note that the start has succeeded, so that the run may write to the directory."""
        self._confirmed = True

    def release(self) -> None:
        """Release the lock and remove its file."""
        self._ended.set()
        if self._file >= 0:
            with suppress(OSError):
                if self._before and not self._confirmed:  # the lock that a killed run has left
                    _write(self._file, self._before)
                elif _is_at(self._path, self._file):
                    self._path.unlink()
            self._close()
        for folder in () if self._confirmed else self._created:
            with suppress(OSError):  # of a folder that is not empty
                folder.rmdir()

    def _take(self) -> int:
        while True:
            file, created = _open(self._path)
            try:
                locked = _flock(file)
                if locked and not _is_at(self._path, file):
                    os.close(file)  # its owner ended and removed it meanwhile
                    continue
                if not created:
                    self._before = _wait_for_owner(self._path, self._option, locked=locked)
                _write(file, json.dumps(_own_facts(), indent=2).encode() + b"\n")
            except BaseException:
                if created:
                    self._path.unlink(missing_ok=True)
                os.close(file)
                raise
            return file

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_S):
            with suppress(OSError):
                os.utime(self._file)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _open(path: Path) -> tuple[int, bool]:
    """Return the open file, and whether this call created it, which only one node can."""
    with suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False


def _flock(file: int) -> bool:
    """Return False if another process has locked the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    return True


def _is_at(path: Path, file: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False


def _write(file: int, content: bytes) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, content, 0)
    os.fsync(file)


def _wait_for_owner(path: Path, option: str, *, locked: bool) -> bytes:
    """Return the content of a lock whose owner has ended. Waits for a sign of life of an owner on another machine.

    Args:
        path: The file.
        option: The option that names its folder.
        locked: Whether this process has the `flock`, so that no process of this machine has it.

    Raises:
        UserError: The owner is alive.
    """
    first, until, noted = _modified(path), time.monotonic() + LAPSE_S, False
    while True:
        content = path.read_bytes()
        facts = _facts(content)
        here = facts is not None and facts.get("boot") == _boot()
        if facts is not None and (not locked or _modified(path) != first or (here and _lives(facts))):
            raise _owned(path, facts, option)
        if locked and here:
            return content  # its process has ended
        if time.monotonic() >= until:
            if not locked:
                raise _owned(path, {}, option)
            return content
        if not noted:
            host = (facts or {}).get("host", "an unknown host")
            _log.warning("%s names a run on %s: waiting up to %g s for a sign of life", path, host, LAPSE_S)
        noted = True
        time.sleep(_POLL_S)


def _modified(path: Path) -> float:
    """Return the modification time. Opening the file makes NFS read it from the server."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _facts(content: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        facts = json.loads(content)
        return facts if isinstance(facts, dict) else None
    return None


def _own_facts() -> dict[str, Any]:
    """Return what identifies this process, and its command as a user types it."""
    script, *arguments = [each for each in sys.argv if not each.startswith("--local_rank")] or [""]
    run = ["run"] if Path(script).name == "run.py" else []
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["mcframe", *run, *map(redacted, arguments)]),
        "process_start": psutil.Process().create_time(),
        "boot": _boot(),
    }


def _boot() -> str:
    """Return the id of the running system: machines may have equal names."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return platform.node()


def _lives(facts: Mapping[str, Any]) -> bool:
    """Return whether a process of this machine is the owner: process ids are used again, with another start time."""
    with suppress(psutil.Error, TypeError, ValueError):
        process = psutil.Process(int(facts["pid"]))
        same: bool = abs(process.create_time() - float(facts["process_start"])) < _SAME_START_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    return False


def _owned(path: Path, facts: Mapping[str, Any], option: str) -> UserError:
    host, pid = facts.get("host", "an unknown host"), facts.get("pid", "unknown")
    remedy = f"Wait for it to end, or pass another {option}."
    if facts.get("boot") != _boot():
        remedy += f" If no such process runs on {host}, repeat the command after {LAPSE_S:g} s, or remove {LOCK}."
    return UserError(
        f"{path.parent} belongs to a run that has not ended: process {pid} on {host}, since "
        f"{facts.get('since', 'an unknown time')}: {facts.get('command', 'an unknown command')}",
        remedy=remedy,
        location=Location(path),
    )
