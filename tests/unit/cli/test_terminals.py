"""Output that cannot be printed, closed streams and narrow terminals never end a command."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mcframe.metrics.tables import FittedTable

PROGRAM = """
import os, sys
from mcframe.cli.streams import protect_streams
protect_streams()
assert os.open(os.devnull, os.O_WRONLY) > 2
for text in ("loss 1.0 → 0.5 ·1· Δ é 語 \\udcff", "second", ""):
    print(text, flush=True)
    print(text, file=sys.stderr, flush=True)
    os.system("echo from a child")
sys.stdin.read()
open(sys.argv[1], "w").write("trained")
"""


def run_program(tmp_path: Path, redirection: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    done = tmp_path / "done"
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"{sys.executable} {tmp_path / 'program.py'} {done} {redirection}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
    )  # fmt: skip
    assert done.read_text() == "trained", result.stderr
    return result


def test_characters_that_a_locale_lacks_are_replaced(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    result = run_program(tmp_path, "", **ascii_only)
    assert result.returncode == 0
    assert result.stdout.decode("ascii").startswith("loss 1.0 -> 0.5 .1. d ? ? ?\n")
    assert result.stderr.startswith(b"loss 1.0 -> 0.5")


@pytest.mark.parametrize("redirection", [">&- 2>&- <&-", "2>&-", "2>&1 | head -c 1", ">/dev/full"])
def test_no_stream_ends_a_command(tmp_path, redirection):
    result = run_program(tmp_path, redirection)
    assert result.returncode == 0
    lost = result.stderr.count(b"cannot be written: No space left on device")
    assert lost == ("full" in redirection)
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr


@pytest.mark.parametrize(("redirection", "code"), [("| true", 0), (">/dev/full", 2), (">&-", 0)])
def test_commands_that_only_print_end_quietly(redirection, code):
    command = f"{sys.executable} -m mcframe metrics {redirection}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert result.returncode == code
    assert result.stderr.count(b"\n") == (code == 2)


word = st.text("abcdefgh/._-", min_size=1, max_size=12)
cell = st.lists(word, min_size=1, max_size=4).map(" ".join)


@given(st.lists(st.lists(cell, min_size=3, max_size=3), min_size=1, max_size=4), st.integers(20, 90))
@settings(max_examples=50, deadline=None)
def test_no_word_of_a_table_is_cut_at_any_width(rows, width):
    table = FittedTable("first", "second", "third", title="title")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    assert max(map(len, out.getvalue().splitlines())) <= width
    shown = set(out.getvalue().replace("│", " ").replace("┃", " ").split())
    assert {part for row in rows for one in row for part in one.split()} <= shown
