"""Signals to a rank or the command before the first step: one line, no traceback, the exit code of the signal."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mcframe.ending_signals import ending_signals
from tests.chaos.runs import arguments
from tests.support.launches import SMOKE, Result, handles

pytestmark = pytest.mark.launcher

STUCK_SECONDS = 4.5
"""A start-up that has not ended after so long is ended by its watch, after five seconds."""
LONG = 1024 * 2000
"""Tokens that take minutes: a run that trains when the signal arrives has not finished."""

IN_A_DESTRUCTOR = """
import signal, sys, time
from mcframe.ending_signals import handle_ending_signals, raise_again
from mcframe.errors import raise_interrupt
sys.unraisablehook = raise_again
handle_ending_signals(raise_interrupt)

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

try:
    Dropped()
    time.sleep(20)
except KeyboardInterrupt as interrupt:
    sys.exit(128 + interrupt.number)
"""


@pytest.fixture
def blocked():
    """Ending signals are blocked, as `mcframe run` blocks them for its launcher and ranks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


PHASES_PRINTED = """
import os

from mcframe.data.tokenizers import Bytes
from mcframe.hookspecs import Tokenizer, hookimpl

def announced() -> Tokenizer:
    os.write(1, b"phase: model\\n")
    return Bytes()

@hookimpl
def register_plugins(register):
    os.write(1, b"phase: config\\n")
    register("announced", announced)

@hookimpl
def run_started(run):
    os.write(1, b"phase: training\\n")
"""
"""A plug-in. Signals are handled as in training from just before its last line on. No signal can divide a line."""


def mapped(library):
    return lambda start: library in Path(f"/proc/{start.process.pid}/maps").read_text("utf-8")


def printed(text):
    return lambda start: text in start.output.read_text("utf-8")


def written(pattern):
    return lambda start: any(start.folder.glob(pattern))


def below(argument, library=""):
    """Return a phase of a command: a process below it has this argument, and has loaded this library."""

    def reached(start):
        children = psutil.Process(start.process.pid).children(recursive=True)
        found = [each.pid for each in children if argument in arguments(each)]
        with suppress(OSError):  # it has ended
            return any(library in Path(f"/proc/{pid}/maps").read_text("utf-8") for pid in found)
        return False

    return reached


PHASES = {
    "start": lambda start: True,
    "handlers": lambda start: handles(start.process.pid, signal.SIGTERM),
    "psutil": mapped("_psutil_linux"),
    "torch": mapped("libtorch_python"),
    "numpy": mapped("_multiarray_umath"),  # which torch imports
    "pydantic": mapped("_pydantic_core"),  # which mcframe imports after torch
    "config": printed("phase: config"),
    "model": printed("phase: model"),
    "deepspeed": mapped("_cmsgpack"),  # which DeepSpeed imports
    "directory": written("run/running.json"),
    "text": written("cache/tokens/*.partial"),
    "summary": printed("run directory"),
    "overlap": printed("held-out text"),
    "training": printed("phase: training"),
    "runner": below("deepspeed.launcher.runner"),
    "torch of the runner": below("deepspeed.launcher.runner", "libtorch_python"),
    "launch": below("deepspeed.launcher.launch"),
}
"""Phase of a start -> whether it has been reached, by what can be seen from outside."""


class Start:
    """A process in start-up. Its output goes to a file in its folder, which phases look into.

    Attributes:
        by_watch: True if the watch may have ended it, because an import has swallowed the signal: without clearing up.
    """

    def __init__(self, command, environment, folder):
        self.folder, self.output = folder, folder / "output"
        with self.output.open("w") as output:
            pipes = {"stdout": output, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def ended(self, number, phase, fraction=0.0):
        """Send a signal in a phase, after a fraction of the time until then. Return the exit code and the output."""
        began = time.monotonic()
        try:
            while not PHASES[phase](self):
                assert self.process.poll() is None, f"{phase} was not reached: {self.output.read_text('utf-8')}"
                time.sleep(0.005)
            time.sleep(fraction * (time.monotonic() - began))
            self.process.send_signal(number)
            sent = time.monotonic()
            code = self.process.wait(60)
            self.by_watch = time.monotonic() - sent > STUCK_SECONDS
            return code, self.output.read_text("utf-8")
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


MOMENTS = (
    "start", "handlers", "torch", "numpy", "pydantic", "config", "model", "deepspeed", ("deepspeed", 0.2), "directory",
    "text", "summary", "overlap", "training",
)  # fmt: skip
FEW = (("INT", "start"), ("TERM", "torch"))
MORE = [(name, moment) for moment in MOMENTS for name in ("INT", "TERM", "HUP", "QUIT") if (name, moment) not in FEW]


@pytest.mark.parametrize(
    ("name", "moment"), [*FEW, *(pytest.param(*each, marks=pytest.mark.matrix) for each in MORE)],
    ids=lambda each: each if isinstance(each, str) else "-".join(map(str, each)),
)  # fmt: skip
def test_a_rank_in_start_up_ends_with_one_line(launches, blocked, tmp_path, name, moment):
    """One that trains by the time the signal arrives saves, and prints how to resume."""
    number, phase = getattr(signal, f"SIG{name}"), (moment,) if isinstance(moment, str) else moment
    plugin, run_dir, environment = tmp_path / "phases.py", tmp_path / "run", launches.environment
    plugin.write_text(PHASES_PRINTED)
    command = [sys.executable, launches.script, "--gin", str(SMOKE), "--run-dir", str(run_dir)]
    command += ["--plugin", str(plugin), "--set", "run.tokenizer = @tokenizer.announced"]
    command += ["--set", f"run.total_tokens = {LONG}"]
    if moment == "text":
        environment = {**environment, "MCFRAME_CACHE": str(tmp_path / "cache")}
    start = Start(command, environment, tmp_path)
    code, output = start.ended(number, *phase)
    assert "Traceback" not in output
    assert code == 128 + number, output
    lines = output.splitlines()
    if "phase: training" in lines:
        result = Result(code, output, run_dir)
        assert result.summary["status"] == "interrupted"
        assert 0 < result.summary["tokens"] < LONG
        assert result.checkpoints[-1] == result.summary["tokens"]
        assert lines[-1].startswith(f"To resume: the same gin files and plug-ins with --run-dir {run_dir}")
        assert "interrupted" not in lines
        assert not list(run_dir.glob("checkpoints/.*"))
    else:
        assert phase[0] != "training"
        assert lines.count("interrupted") == 1
        assert lines[-1] == "interrupted"
        assert not run_dir.exists() or start.by_watch
        assert not list(run_dir.glob("checkpoints/tokens-*"))


@pytest.mark.parametrize(("name", "phase"), [
    ("INT", "handlers"), ("HUP", "psutil"), ("QUIT", "runner"), ("INT", "torch of the runner"),
    pytest.param("TERM", "launch", marks=pytest.mark.matrix),
])  # fmt: skip
def test_a_command_without_ranks_ends_with_one_line(launches, tmp_path, name, phase):
    number = getattr(signal, f"SIG{name}")
    command = [sys.executable, "-m", "mcframe", "run", "--gin", str(SMOKE), "--run-dir", str(tmp_path / "run")]
    code, output = Start(command, launches.environment, tmp_path).ended(number, phase)
    assert code == 128 + number, output
    assert [line for line in output.splitlines() if "Setting accelerator" not in line] == ["interrupted"]


REPLACES_IT = """
import importlib.abc, runpy, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            try:
                signal.raise_signal(signal.SIGTERM)
            except BaseException:
                if not LATER:
                    raise ImportError("a library replaces what interrupts it")
            raise ImportError("it is imported again")

sys.meta_path.insert(0, Finder())
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "later"),
    [("mcframe.cli.train", False), ("deepspeed", True),
     *(pytest.param(*each, marks=pytest.mark.matrix) for each in (("mcframe.cli.train", True), ("deepspeed", False)))],
)  # fmt: skip
def test_a_library_that_replaces_the_exception_changes_nothing(launches, tmp_path, module, later):
    """An import before and in the part that reports errors."""
    (tmp_path / "start.py").write_text(f"MODULE, LATER = {module!r}, {later}\n{REPLACES_IT}")
    command = [sys.executable, tmp_path / "start.py", launches.script, "--gin", SMOKE, "--run-dir", tmp_path / "run"]
    result = subprocess.run([*map(str, command)], env=launches.environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (143, "interrupted")
    assert "Traceback" not in result.stderr


FIRST_LINES = """
import builtins, runpy, signal, sys, time
imported = builtins.__import__

def interrupted(name, *arguments):
    if name == MODULE:
        builtins.__import__ = imported
        signal.raise_signal(signal.SIGHUP)
    return imported(name, *arguments)

builtins.__import__ = interrupted
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("entry", "module"), [("__main__.py", "mcframe.cli.app"), ("run.py", "mcframe.completion")])
def test_the_first_import_is_interrupted_with_one_line(launches, tmp_path, entry, module):
    (tmp_path / "start.py").write_text(f"MODULE = {module!r}\n{FIRST_LINES}")
    command = [sys.executable, tmp_path / "start.py", Path(launches.script).with_name(entry)]
    result = subprocess.run([*map(str, command)], env=launches.environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (129, "interrupted\n")


ONE_CTRL_C = """
import signal, time
from mcframe.ending_signals import handle_ending_signals
from mcframe.errors import ONE_REQUEST_S, raise_interrupt
handle_ending_signals(raise_interrupt)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    signal.raise_signal(signal.SIGTERM)
    print("one request")
    time.sleep(ONE_REQUEST_S)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("another")
"""


def test_a_command_s_signal_does_not_interrupt_the_end_that_a_ctrl_c_began():
    """A Ctrl-C reaches a rank from the terminal, and as SIGTERM from the command."""
    result = subprocess.run([sys.executable, "-c", ONE_CTRL_C], capture_output=True, text=True, timeout=60)
    assert (result.stdout.splitlines(), result.stderr) == (["one request", "another"], "")


def test_a_signal_whose_exception_python_drops_is_sent_again():
    result = subprocess.run([sys.executable, "-c", IN_A_DESTRUCTOR], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (143, "")
