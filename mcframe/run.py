"""Train: `deepspeed mcframe/run.py --gin gin/run10.gin`.

Every rank runs this. `mcframe run` starts the launcher with it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

# Python puts this script's folder first on the path, where `data`, `testing` and others would shadow modules of other
# packages. It must be removed before any other import.
if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until there are handlers


def train() -> int:
    """Train on this rank, and return the exit code. A rank without anything to save obeys every ending signal."""
    from mcframe.ending_signals import ParentWatch, handle_ending_signals, raise_again
    from mcframe.errors import raise_interrupt

    sys.unraisablehook = raise_again
    handle_ending_signals(raise_interrupt)  # the launcher may pass on a setting that ignores or blocks signals
    ParentWatch().start()
    from mcframe.cli.streams import protect_streams

    protect_streams()
    from mcframe.cli.train import main

    return main()


if __name__ == "__main__":
    unfinished = None
    try:
        from mcframe.completion import take_unfinished

        unfinished = take_unfinished()
        code = train()
    except (KeyboardInterrupt, Exception) as error:
        from mcframe.errors import interrupt_of, interrupted_code, interrupts

        if (interrupt := interrupt_of(error) or next(iter(interrupts), None)) is None:
            raise
        code = interrupted_code(interrupt)
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)  # noqa: T201
    for number in ENDING:  # the launcher ends the other ranks of a run that has not finished
        signal.signal(number, signal.SIG_IGN)
    if unfinished is not None and code == 0:
        with suppress(OSError):
            unfinished.unlink()
    sys.exit(code)
