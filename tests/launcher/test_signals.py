"""Signals to real runs: every target and moment."""

import os
import re
import shlex
import signal
import sys
import threading
import time

import psutil
import pytest

from mcframe.training.run_lock import LOCK
from tests.chaos.runs import arguments
from tests.support.launches import SMOKE, handles

pytestmark = [pytest.mark.launcher, pytest.mark.matrix]

STEP = 1024
SETTINGS = (
    f"run.total_tokens = {4000 * STEP}", f"run.batch_tokens = {STEP}", f"logging.every = {2 * STEP}",
    "validation.windows = 64", f"validation.every = {3 * STEP}", f"checkpoint.every = {4 * STEP}",
    "logging.wandb = 'offline'",
)  # fmt: skip
CODES = {"INT": 130, "TERM": 143, "HUP": 129, "QUIT": 131}
LAUNCHERS = {"runner": "deepspeed.launcher.runner", "launch": "deepspeed.launcher.launch"}
MOMENTS = (("start", 1.0), ("directory", 0.0), ("step", 0.0), ("step", 1.5), ("step", 3.0))
"""Seconds after a phase: the command handles signals and its target runs (imports), all ranks have met, or the first
logged step (steps, validation, a checkpoint). The run lasts minutes."""


class Sender:
    """Sends a signal at a moment, and records what the command had started by then."""

    def __init__(self, target, name, moment, run_dir):
        self.run_dir = run_dir
        self.target, self.number, self.moment = target, getattr(signal, f"SIG{name}"), moment
        self.below, self.thread = [], None

    def watch(self, line, process):
        if self.thread is None and (self.moment[0] != "step" or re.search(r"loss.*ETA", line)):
            self.thread = threading.Thread(target=self.send, args=(process.pid,))
            self.thread.start()

    def send(self, pid):
        while not (handles(pid, signal.SIGTERM) and self.found(pid)):
            time.sleep(0.02)
        while self.moment[0] == "directory" and not (self.run_dir / LOCK).exists():
            assert psutil.pid_exists(pid), "the run has ended before it had its directory"
            time.sleep(0.02)
        time.sleep(self.moment[1])
        self.below = psutil.Process(pid).children(recursive=True)
        if self.target == "group":
            os.killpg(pid, self.number)
        else:
            self.found(pid)[-1].send_signal(self.number)

    def found(self, pid):
        """Return the command, or the processes of another target that run."""
        command = psutil.Process(pid)
        if self.target in ("command", "group"):
            return [command]
        return [each for each in command.children(recursive=True) if self.matches(arguments(each))]

    def matches(self, arguments):
        if self.target == "rank":
            return any(each.startswith("--local_rank") for each in arguments) and "deepspeed" not in str(arguments[:4])
        return LAUNCHERS[self.target] in arguments


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}{moment[1]:g}")
@pytest.mark.parametrize(("target", "name"), [
    *((target, name) for target in ("command", "group", "rank", "launch") for name in CODES),
    *((target, "KILL") for target in ("command", "runner", "launch")),
])  # fmt: skip
def test_a_signal_saves_and_leaves_no_process(launches, tmp_path, ranks, moment, target, name):
    command = [sys.executable, "-m", "mcframe", "run", "--gin", str(SMOKE), "--run-dir", str(tmp_path / "run")]
    command += ["--ranks", str(ranks)]
    for setting in SETTINGS:
        command += ["--set", setting]
    sender = Sender(target, name, moment, tmp_path / "run")
    if moment[0] != "step":
        command = ["bash", "-c", f"echo started; exec {shlex.join(command)}"]
    result = launches.execute(command, run_dir=tmp_path / "run", watch=sender.watch)
    ended = time.monotonic()
    assert psutil.wait_procs(sender.below, timeout=40)[1] == []
    assert time.monotonic() - ended < 40
    assert "Traceback" not in result.output
    assert moment[0] != "step" or re.search(r"loss.*ETA", result.output)
    if name == "KILL":
        assert result.code == -signal.SIGKILL if target == "command" else result.code > 128
    elif target in ("command", "group"):
        assert result.code == CODES[name]
    else:
        assert result.code in CODES.values()
    if re.search(r"loss.*ETA", result.output) and (target, name) != ("rank", "KILL"):
        assert result.summary["status"] == "interrupted"
        assert result.checkpoints[-1] == result.summary["tokens"]
    assert list(tmp_path.glob("run/checkpoints/.writing-*")) == []
