"""Signals to `mcframe run` and to what it starts, with programs that stand for the launcher and a rank."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mcframe.errors import ONE_REQUEST_S

COMMAND = """
import os, signal, sys
from mcframe.cli import launch
from mcframe.cli.launch import Launched
launch._POLL_S, launch._AT_ONCE_S = 0.05, 1.0
from mcframe.ending_signals import as_parent, ending_signals
signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
sys.exit(Launched(sys.argv[2:], as_parent(os.environ), sys.argv[1], remote=False).wait())
"""
# As DeepSpeed's: the runner starts the launcher of this machine, which starts the rank, and is silent about a signal.
# A slow launcher starts the rank once its runner has ended.
LAUNCHER = """
import os, subprocess, sys, time
kind, *rest = sys.argv[1:]
runs = kind == "deepspeed.launcher.runner"
if "early" in rest[-1] or ("rankless" in rest[-1] and not runs):
    time.sleep(30)
while "slow" in rest[-1] and not runs and os.getppid() == int(os.environ["RUNNER"]):
    time.sleep(0.02)
command = [sys.executable, *([sys.argv[0], "deepspeed.launcher.launch", *rest] if runs else rest)]
code = subprocess.call(command, env={**os.environ, "RUNNER": str(os.getpid())})
sys.exit(max(code, 0) if runs else code)
"""
RANK = """
import signal, sys, time
from pathlib import Path
from mcframe import ending_signals
from mcframe.completion import take_unfinished
from mcframe.ending_signals import ParentWatch, handle_ending_signals
from mcframe.errors import raise_interrupt
ending_signals._POLL_S = 0.1
unfinished = take_unfinished()
mark = Path(sys.argv[-1])
handle_ending_signals(raise_interrupt)
try:
    ParentWatch().start()
    mark.write_text("ready")
    time.sleep(0.5 if "short" in mark.name else 30)
    unfinished.unlink()
except KeyboardInterrupt as interrupt:
    handle_ending_signals(signal.SIG_IGN)
    time.sleep(30 if "stubborn" in mark.name else 0.3)
    mark.write_text("saved")
    sys.exit(128 + interrupt.number)
"""
BELOW = {"early": 1, "rankless": 2, "slow": 2}
"""Name of the mark -> the number of processes below the command in a run without a rank."""


class Run:
    """A command, two launchers and a rank that takes a moment to save. All look more often than by default."""

    def __init__(self, folder, name="mark", before=()):
        (folder / "rank.py").write_text(RANK)
        (folder / "deepspeed").write_text(LAUNCHER)
        self.mark = folder / name
        launcher = [sys.executable, folder / "deepspeed", "deepspeed.launcher.runner", folder / "rank.py", self.mark]
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", COMMAND, folder / "rank.py", *launcher],
            env={**os.environ, "RANK": "0", "TMPDIR": str(folder)},
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.below = []
        until = time.monotonic() + 20
        while not (self.mark.exists() if name not in BELOW else len(self.below) == BELOW[name]):
            assert time.monotonic() < until
            time.sleep(0.02)
            self.below = psutil.Process(self.process.pid).children(recursive=True)
        self.below = psutil.Process(self.process.pid).children(recursive=True)

    def send(self, target, number):
        if target == "group":
            for process in (psutil.Process(self.process.pid), *self.below):
                process.send_signal(number)
        else:
            targets = [self.process, *self.below]
            targets[("command", "runner", "launch", "rank").index(target)].send_signal(number)

    def ignores(self, number):
        """Return whether the rank ignores a signal, as it does once it has received one."""
        lines = Path(f"/proc/{self.below[-1].pid}/status").read_text("utf-8").splitlines()
        ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
        return bool(ignored >> (number - 1) & 1)

    def end(self):
        """Return the exit code and what the rank wrote by then. No process may be left a few seconds later."""
        code, written = self.process.wait(20), self.mark.read_text() if self.mark.exists() else ""
        _, alive = psutil.wait_procs(self.below, timeout=5)
        assert alive == []
        return code, written


FEW = (
    ("command", "INT", 130), ("command", "HUP", 129), ("group", "TERM", 143), ("launch", "TERM", 143),
    ("launch", "KILL", 143),
)  # fmt: skip
CODES = {"INT": 130, "TERM": 143, "HUP": 129, "QUIT": 131}
MORE = [
    *((target, name, code) for target in ("command", "group", "rank") for name, code in CODES.items()),
    *((target, name, 143) for target in ("runner", "launch") for name in CODES),
    ("runner", "KILL", 143), ("rank", "KILL", 137),
]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "name", "code"), [*FEW, *(pytest.param(*each, marks=pytest.mark.matrix) for each in MORE)]
)
def test_every_signal_reaches_the_rank_and_the_command_waits_for_it(tmp_path, target, name, code):
    run = Run(tmp_path)
    run.send(target, getattr(signal, f"SIG{name}"))
    saved = "ready" if (target, name) == ("rank", "KILL") else "saved"
    assert run.end() == (code, saved)


def test_ranks_of_a_killed_command_save_and_end(tmp_path):
    run = Run(tmp_path)
    run.send("command", signal.SIGKILL)
    assert run.end()[0] == -signal.SIGKILL
    assert run.mark.read_text() == "saved"


def test_a_rank_whose_runner_was_killed_before_it_started_saves_and_ends(tmp_path):
    run = Run(tmp_path, "slow")
    run.send("runner", signal.SIGKILL)
    assert run.end() == (143, "saved")


def test_a_second_ctrl_c_ends_a_rank_that_does_not(tmp_path):
    run = Run(tmp_path, "stubborn")
    run.send("command", signal.SIGINT)
    until = time.monotonic() + 20
    while not run.ignores(signal.SIGTERM):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(ONE_REQUEST_S + 0.1)
    began = time.monotonic()
    run.send("command", signal.SIGINT)
    assert run.end() == (130, "ready")
    assert time.monotonic() - began < 12


def test_a_signal_before_there_are_ranks_ends_at_once(tmp_path):
    run = Run(tmp_path, "early")
    run.send("command", signal.SIGTERM)
    assert run.end() == (143, "")


def test_a_launcher_that_is_killed_before_there_are_ranks_is_an_error(tmp_path):
    """DeepSpeed's runner returns 0 then."""
    run = Run(tmp_path, "rankless")
    run.send("launch", signal.SIGKILL)
    assert run.end() == (137, "")
    assert run.process.stderr.read() == "a rank or the launcher was ended by signal 9\n"


def test_a_launcher_that_is_killed_together_with_its_ranks_is_an_error(tmp_path):
    run = Run(tmp_path)
    run.send("command", signal.SIGSTOP)  # it finds both dead
    run.send("launch", signal.SIGKILL)
    run.send("rank", signal.SIGKILL)
    time.sleep(0.5)
    run.send("command", signal.SIGCONT)
    assert run.end() == (137, "ready")
    assert run.process.stderr.read() == "a rank or the launcher was ended by signal 9\n"


def test_a_run_that_has_finished_is_none(tmp_path):
    (tmp_path / "mcframe-unfinished-killed").touch()
    run = Run(tmp_path, "short")
    assert run.end() == (0, "ready")
    assert run.process.stderr.read() == ""
    assert list(tmp_path.glob("mcframe-unfinished-*")) == []


def test_nohup_survives_the_terminal(tmp_path):
    run = Run(tmp_path, before=("nohup",))
    run.send("group", signal.SIGHUP)
    time.sleep(0.5)
    assert run.process.poll() is None
    run.send("command", signal.SIGTERM)
    assert run.end() == (143, "saved")
