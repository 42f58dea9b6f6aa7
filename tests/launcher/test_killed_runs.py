"""`mcframe review` reads the files of a run that was killed at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.errors import UserError
from mcframe.review.apply_rules import apply_rules
from mcframe.review.finding import Case
from mcframe.review.record import read_run
from mcframe.review.review import review
from mcframe.review.rules import read_rules

pytestmark = pytest.mark.launcher

EVERY = 50  # reads of the folder between two copies without a new line


class Moments:
    """Pause a run repeatedly and copy its folder; kill it after its first checkpoint.

    A paused process has written exactly what it would have written had it been killed at that moment.
    """

    def __init__(self, run_dir, folder):
        self.run_dir, self.folder, self.kept = run_dir, folder, []
        self.thread = None

    def watch(self, line, process):
        if self.thread is None:
            self.thread = threading.Thread(target=self._follow, args=(process,))
            self.thread.start()

    def _follow(self, process):
        while process.poll() is None and not (self.run_dir / "metrics.jsonl").exists():
            time.sleep(0.02)
        seen, reads = -1, 0
        while process.poll() is None:
            size, reads = (self.run_dir / "metrics.jsonl").stat().st_size, reads + 1
            saved = any(self.run_dir.glob("checkpoints/tokens-*"))
            if saved or size != seen or reads % EVERY == 0:
                os.killpg(process.pid, signal.SIGSTOP)
                kept = self.folder / f"moment-{len(self.kept)}"
                shutil.copytree(self.run_dir, kept, ignore=shutil.ignore_patterns("checkpoints"))
                self.kept.append(kept)
                os.killpg(process.pid, signal.SIGKILL if saved else signal.SIGCONT)
            seen = size
            time.sleep(0.01)  # far shorter than a step, so that most lines are the last one of a copy


@pytest.fixture(scope="module")
def moments(launches, tmp_path_factory):
    """A run that was killed after its first checkpoint, and copies of its folder at earlier moments."""
    folder = tmp_path_factory.mktemp("killed")
    moments = Moments(folder / "run", folder)
    result = launches.run(
        "run.batch_tokens = 512",
        "logging.every = 512",
        "checkpoint.every = 5120",
        run_dir=moments.run_dir,
        watch=moments.watch,
    )
    moments.thread.join()
    assert result.code == -signal.SIGKILL, result.output[-2000:]
    return moments


def test_files_of_a_run_killed_at_any_moment_are_reviewed(moments):
    lines = []
    for moment in (*moments.kept, moments.run_dir):
        if not (moment / "metrics.jsonl").read_bytes():
            with pytest.raises(UserError, match="no metric between"):
                read_run(moment)
            continue
        record = read_run(moment)
        lines.append(record.lines)
        assert record.state == "running"  # silent for seconds only
        apply_rules(Case(record, read_rules()))
    assert lines == sorted(lines)
    assert lines[-1] >= 8
    assert len(set(lines)) >= 4
    outcome = CliRunner().invoke(app, ["review", str(moments.run_dir)])
    assert outcome.exit_code == 0, outcome.output


def test_files_cut_at_any_byte_of_their_last_lines_are_reviewed(moments, tmp_path):
    """A crash of the machine may cut them there."""
    run = tmp_path / "run"
    shutil.copytree(moments.run_dir, run, ignore=shutil.ignore_patterns("checkpoints", "review"))
    content = (run / "metrics.jsonl").read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    # Every byte around the ends of lines, some between them.
    near = {cut for end in ends[-2:] for cut in range(end - 30, end + 30)}
    for cut in range(ends[-2] - 2, ends[-1] + 1):
        if cut not in near and cut % 61:
            continue
        (run / "metrics.jsonl").write_bytes(content[:cut])
        record = read_run(run)
        assert record.lines == len(ends) - 2 + (cut >= ends[-2] - 1) + (cut >= ends[-1] - 1)
    (run / "metrics.jsonl").write_bytes(content[: ends[-1] - 40])
    (run / "pictures.jsonl").write_bytes((run / "pictures.jsonl").read_bytes()[:-40])
    (events,) = (run / "tensorboard").glob("*tfevents*")
    events.write_bytes(events.read_bytes()[:-30])
    document, _ = review(Case(read_run(run), read_rules()))
    assert len(document.pictures()) >= 8
