"""End a command with one message: location, problem and remedy, exit code 2."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from mcframe.errors import EXIT_USER_ERROR, UserError, interrupt_of, interrupted_code, is_lost_connection
from mcframe.files import is_full, unwritable
from mcframe.safe_text import redacted

_OTHERS_REPORT_S = 10.0
_NOTE_LIFETIME_S = 60.0
_START_S = 5.0
"""Seconds between the starts of the ranks of a run, at most: an older note is of an earlier run."""
_OF_A_PATH = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS,
              errno.ENAMETOOLONG, errno.ELOOP, errno.EIO}  # fmt: skip


def show(error: UserError) -> None:
    """Print the error in a frame, which stands out from the lines of the launcher."""
    text = Text(redacted(error.message))
    if error.location:
        text = Text(redacted(f"{error.location}\n"), style="bold") + text
    if error.remedy:
        text = text + Text(redacted(f"\n→ {error.remedy}"), style="green")
    console = Console(stderr=True, soft_wrap=False)
    console.print(Panel(text, title="mcframe stopped", title_align="left", border_style="red"), highlight=False)


def _as_user_error(failure: Exception) -> UserError | None:
    """Return the message for an exception that a user can fix: a UserError, a full disk, or a path."""
    if isinstance(failure, UserError):
        return failure
    if is_full(failure):
        return unwritable(failure)
    if isinstance(failure, OSError) and failure.errno in _OF_A_PATH:
        remedy = "Pass another path, or correct its permissions."
        return UserError(f"{failure.filename or 'a file'}: {failure.strerror}", remedy=remedy)
    return None


def _is_first() -> bool:
    """Return whether no other rank of this machine has reported an error, and note that this one does.

    The error of one rank makes others fail. Ranks of one machine have a launcher and a port in common, which name the
    note. The launcher of another machine ends its ranks once one of them has ended.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or "MASTER_PORT" not in os.environ:
        return True
    try:
        note = _note()
    except OSError:  # without a note every rank prints its error
        return True
    try:
        note.touch(exist_ok=False)
    except OSError as error:
        return not isinstance(error, FileExistsError)
    return True


def _reported_elsewhere() -> bool:
    """Wait for the note of another rank, and return whether there is one."""
    until = time.monotonic() + _OTHERS_REPORT_S
    while time.monotonic() < until:
        with suppress(OSError):
            if _note().exists():
                return True
        time.sleep(0.1)
    return False


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    """Print one line for all ranks, and return the exit code of a signal."""
    if os.environ.get("RANK", "0") == "0":
        print("interrupted", file=sys.stderr)  # noqa: T201
    return interrupted_code(interrupt)


def _lost_connection(error: Exception) -> UserError:
    return UserError(
        f"rank {os.environ.get('RANK', '0')} lost the other ranks"
        f"{''.join(f' ({note})' for note in getattr(error, '__notes__', ()))}: {str(error).splitlines()[0]}",
        remedy="Look for a rank that was killed, for example because memory ran out (`dmesg` shows it), or that does "
        "not take part in a collective of a plug-in; --traceback prints where this rank waited.",
    )


def _note() -> Path:
    """Return the note of this run. A shell or torchrun may start several with one parent and one port."""
    note = _notes() / f"{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    with suppress(OSError):
        if note.stat().st_mtime < psutil.Process().create_time() - _START_S:
            note.unlink()
    return note


def _notes() -> Path:
    """Return the folder of notes that only this user can write, without the notes of earlier runs."""
    folder = Path(tempfile.gettempdir()) / f"mcframe-errors-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not private to this user")
    for note in folder.iterdir():
        with suppress(FileNotFoundError):  # another rank was quicker
            if time.time() - note.stat().st_mtime > _NOTE_LIFETIME_S:
                note.unlink()
    return folder


def report_user_errors(action: Callable[[], int], *, traceback: bool) -> int:
    """Run `action`. Turn a UserError into a message and exit code 2, a signal into exit code 128 plus its number.

    Of several ranks that fail, the first one reports. With `traceback`, all exceptions pass.
    """
    try:
        return action()
    except KeyboardInterrupt as interrupt:
        if traceback:
            raise
        return _interrupted(interrupt)
    except Exception as failure:
        if traceback:
            raise
        if (replaced := interrupt_of(failure)) is not None:
            return _interrupted(replaced)
        error = _as_user_error(failure)
        if error is None and is_lost_connection(failure) and os.environ.get("WORLD_SIZE", "1") != "1":
            if _reported_elsewhere():
                return EXIT_USER_ERROR
            error = _lost_connection(failure)
        first = _is_first()
        if error is None:
            raise
        if first:
            show(error)
        sys.stdout.flush()
        sys.stderr.flush()
        return EXIT_USER_ERROR
