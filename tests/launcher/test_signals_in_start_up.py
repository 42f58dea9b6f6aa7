"""Signals to a rank or the command before the first step: one line, no traceback, the exit code of the signal."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcframe.ending_signals import ending_signals
from tests.support.launches import SMOKE, handles

pytestmark = pytest.mark.launcher

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


def ended(command, environment, number, seconds, handled=False):
    """Send a signal some seconds after the start, or after there are handlers. Return exit code and output."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipe) as process:
        while handled and process.poll() is None and not handles(process.pid, signal.SIGTERM):
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


LATER = (("HUP", 2.0), ("QUIT", 3.5))
"""Moments that long imports of the default tests reach, too, in a part of their own below."""


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("INT", 0.0), ("TERM", 0.7), *(pytest.param(*each, marks=pytest.mark.matrix) for each in LATER),
     *(pytest.param(name, moment / 4, marks=pytest.mark.matrix)
       for name in ("INT", "TERM", "HUP", "QUIT") for moment in range(1, 16, 2))],
)  # fmt: skip
def test_a_rank_in_start_up_ends_with_one_line(launches, blocked, tmp_path, name, seconds):
    number = getattr(signal, f"SIG{name}")
    command = [sys.executable, launches.script, "--gin", str(SMOKE), "--run-dir", str(tmp_path / "run")]
    code, output = ended(command, launches.environment, number, seconds)
    assert "Traceback" not in output
    assert code == 128 + number, output
    assert output.splitlines().count("interrupted") == 1
    assert not list(tmp_path.glob("run/checkpoints/.*"))


@pytest.mark.parametrize(("name", "seconds"), [
    ("INT", 0.0), ("HUP", 0.1), ("QUIT", 0.3), ("INT", 0.7), pytest.param("TERM", 2.5, marks=pytest.mark.matrix),
])  # fmt: skip
def test_a_command_without_ranks_ends_with_one_line(launches, tmp_path, name, seconds):
    number = getattr(signal, f"SIG{name}")
    command = [sys.executable, "-m", "mcframe", "run", "--gin", str(SMOKE), "--run-dir", str(tmp_path / "run")]
    code, output = ended(command, launches.environment, number, seconds, handled=True)
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
