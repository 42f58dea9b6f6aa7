"""How a command ends when something is wrong: one message, the place, the remedy, exit code 2."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

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


def guarded(action: Callable[[], int], *, traceback: bool) -> int:
    """Run `action`; turn a UserError into a message and exit code 2. With `traceback`, let it through."""
    try:
        return action()
    except (UserError, PermissionError, FileExistsError, NotADirectoryError) as failure:
        if traceback:
            raise
        if int(os.environ.get("RANK", "0")) != 0:
            # Most errors meet every rank, and rank 0 says so; the launcher then ends the others while they wait here.
            # What only this rank met is said behind the wait.
            time.sleep(_RANK_0_SPEAKS_FIRST_S)
        show(failure if isinstance(failure, UserError) else _unwritable(failure))
        sys.stdout.flush()
        sys.stderr.flush()
        return EXIT_USER_ERROR
