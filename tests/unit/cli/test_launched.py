"""`mcframe run` and what it starts, with programs that stand for the launcher and a rank."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mcframe.ending_signals import PARENTS, as_parent

COMMAND = """
import os, signal, sys
from mcframe.cli.launch import Launched
from mcframe.ending_signals import as_parent, ending_signals
signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
sys.exit(Launched(sys.argv[2:], as_parent(os.environ), sys.argv[1], remote=False).wait())
"""
RANK = """
import signal, sys, time
from pathlib import Path
from mcframe.ending_signals import ParentWatch, handle_ending_signals
from mcframe.errors import raise_interrupt
handle_ending_signals(raise_interrupt)
ParentWatch().start()
mark = Path(sys.argv[-1])
mark.write_text("ready")
try:
    time.sleep(30)
except KeyboardInterrupt as interrupt:
    if "stubborn" in sys.argv[-1]:
        time.sleep(30)
    time.sleep(0.5)
    mark.write_text("saved")
    sys.exit(128 + interrupt.number)
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[2:]]))"


class Run:
    """A command, a launcher that only waits, and a rank that saves for half a second."""

    def __init__(self, folder, *, name="mark", nohup=False):
        (folder / "rank.py").write_text(RANK)
        (folder / "deepspeed").write_text(LAUNCHER)
        self.mark, rank = folder / name, str(folder / "rank.py")
        command = [sys.executable, "-c", COMMAND, rank, sys.executable, str(folder / "deepspeed"), "-m", rank]
        command[-2] = "deepspeed.launcher.runner"  # an argument that the rank does not have
        command = [*command, "--", rank, str(self.mark)]
        self.process = subprocess.Popen(
            [*(["nohup"] if nohup else []), *command], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.wait_for("ready")
        self.below = psutil.Process(self.process.pid).children(recursive=True)

    def wait_for(self, text):
        until = time.monotonic() + 20
        while not (self.mark.exists() and self.mark.read_text() == text):
            assert time.monotonic() < until
            time.sleep(0.02)
