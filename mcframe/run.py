"""Train: `deepspeed mcframe/run.py --gin gin/run10.gin`.

Every rank runs this. `mcframe run` starts the launcher with it.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path

# Python puts this script's folder first on the path, where `data`, `testing` and others would shadow modules of other
# packages. It must be removed before any other import.
if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from mcframe.completion import take_unfinished
from mcframe.ending_signals import ParentWatch, handle_ending_signals
from mcframe.errors import interrupted_code, raise_interrupt

# The launcher may pass on a setting that ignores or blocks signals. A rank without anything to save must obey them.
handle_ending_signals(raise_interrupt)

if __name__ == "__main__":
    unfinished = take_unfinished()
    try:
        ParentWatch().start()
        from mcframe.cli.streams import protect_streams

        protect_streams()
        from mcframe.cli.train import main

        code = main()
    except KeyboardInterrupt as interrupt:
        code = interrupted_code(interrupt)
    handle_ending_signals(signal.SIG_IGN)  # the launcher ends the other ranks of a run that has not finished
    if unfinished is not None and code == 0:
        with suppress(OSError):
            unfinished.unlink()
    sys.exit(code)
