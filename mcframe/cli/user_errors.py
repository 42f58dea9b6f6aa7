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

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from mcframe.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from mcframe.files import is_full, unwritable

_RANK_0_PRINTS_FIRST_S = 10.0
_NOTE_LIFETIME_S = 60.0
_OF_A_PATH = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG,
              errno.ELOOP, errno.EIO}  # fmt: skip


def show(error: UserError) -> None:
    """Print the error in a frame, which stands out from the lines of the launcher."""
    text = Text(error.message)
    if error.location:
        text = Text(f"{error.location}\n", style="bold") + text
    if error.remedy:
        text = text + Text(f"\n→ {error.remedy}", style="green")
    console = Console(stderr=True, soft_wrap=False)
    console.print(Panel(text, title="mcframe stopped", title_align="left", border_style="red"), highlight=False)


def _as_user_error(failure: Exception) -> UserError | None:
    """Return the message for an exception that a user can fix: a UserError, or a path that cannot be written."""
    if isinstance(failure, UserError):
        return failure
    if is_full(failure) or (isinstance(failure, OSError) and failure.errno in _OF_A_PATH):
        return unwritable(failure)
    return None


def _is_printed(error: UserError) -> bool:
    """Return whether rank 0 has printed this error. An error of another rank alone is printed after a wait.

    Ranks of one machine have a launcher and a port in common, which name the note that rank 0 leaves. Ranks of other
    machines find no note: the launcher kills them while they wait, as it does with ranks that have no error.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or "MASTER_PORT" not in os.environ:
        return False
    try:
        return _rank_0_noted(error)
    except OSError:  # without a note every rank prints the error
        return False


def _rank_0_noted(error: UserError) -> bool:
    note = _notes() / f"{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    if int(os.environ.get("RANK", "0")) == 0:
        note.write_text(str(error), "utf-8")
        return False
    until = time.monotonic() + _RANK_0_PRINTS_FIRST_S
    while time.monotonic() < until:
        if note.exists() and note.read_text("utf-8") == str(error):
            return True
        time.sleep(0.1)
    return False


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
    """Run `action`. Turn a UserError into a message and exit code 2, a Ctrl-C into exit code 130.

    With `traceback`, both exceptions pass.
    """
    try:
        return action()
    except KeyboardInterrupt:
        if traceback:
            raise
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    except Exception as failure:
        error = _as_user_error(failure)
        if traceback or error is None:
            raise
        if not _is_printed(error):
            show(error)
        sys.stdout.flush()
        sys.stderr.flush()
        return EXIT_USER_ERROR
