"""How a command ends when something is wrong: one message, the place, the remedy, exit code 2."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from mcframe.errors import EXIT_USER_ERROR, UserError

_RANK_0_SPEAKS_FIRST_S = 10.0


def show(error: UserError) -> None:
    """Print the error in a frame, which launcher lines before and behind do not bury."""
    text = Text(error.message)
    if error.place:
        text = Text(f"{error.place}\n", style="bold") + text
    if error.remedy:
        text = text + Text(f"\n→ {error.remedy}", style="green")
    console = Console(stderr=True, soft_wrap=False)
    console.print(Panel(text, title="mcframe cannot go on", title_align="left", border_style="red"), highlight=False)


def _unwritable(error: OSError) -> UserError:
    return UserError(
        f"{error.filename}: {error.strerror}", remedy="name a folder that may be written, with --run-dir DIR"
    )


def _is_said(error: UserError) -> bool:
    """Has rank 0 said this already? Most errors meet every rank; what only another rank met is said after a wait.

    Ranks of one machine have a launcher and a port in common, and a note there tells what rank 0 has said. Those of
    other machines see none: the launcher ends them while they wait, as it does with ranks that have met nothing.
    """
    note = Path(tempfile.gettempdir()) / f"mcframe-said-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    if int(os.environ.get("RANK", "0")) == 0:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            note.write_text(str(error), "utf-8")
        return False
    until = time.monotonic() + _RANK_0_SPEAKS_FIRST_S
    while time.monotonic() < until:
        if note.exists() and note.read_text("utf-8") == str(error):
            return True
        time.sleep(0.1)
    return False


def guarded(action: Callable[[], int], *, traceback: bool) -> int:
    """Run `action`; turn a UserError into a message and exit code 2. With `traceback`, let it through."""
    try:
        return action()
    except (UserError, PermissionError, FileExistsError, NotADirectoryError) as failure:
        if traceback:
            raise
        error = failure if isinstance(failure, UserError) else _unwritable(failure)
        if not _is_said(error):
            show(error)
        sys.stdout.flush()
        sys.stderr.flush()
        return EXIT_USER_ERROR
