"""What a terminal shows while runs are under way."""

import io
import json

import pytest
from rich.console import Console

from mcframe.ablation.grid import Row
from mcframe.ablation.jobs import Job
from mcframe.ablation.plan import PlannedRun
from mcframe.cli.ablate import _Display


@pytest.fixture
def jobs(tmp_path):
    return [Job(f"row{n}/seed-0", lambda: ([], {}), tmp_path / "log.txt", lambda: True) for n in range(12)]


@pytest.fixture
def runs(tmp_path):
    folders = [tmp_path / str(n) for n in range(12)]
    return {
        f"row{n}/seed-0": PlannedRun(Row(f"row{n}"), 0, folder, (), "", 400, 100) for n, folder in enumerate(folders)
    }


def drawn(jobs, runs, height, terminal=True):
    file = io.StringIO()
    console = Console(file=file, width=100, height=height, force_terminal=terminal, color_system=None)
    with _Display(console, jobs, runs) as display:
        for job in jobs:
            display.changed(job)
        display.redraw()
    return file.getvalue()


def test_a_running_job_has_its_tokens_and_its_loss(jobs, runs, tmp_path):
    jobs[0].state, jobs[0].started, jobs[0].ended = "running", 10.0, 75.0
    (tmp_path / "0").mkdir()
    lines = [{"tokens": 100, "val/loss": 5.5}, {"tokens": 300, "train/loss": 3.0}]
    (tmp_path / "0" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"tokens": 40')
    text = drawn(jobs[:2], runs, 40)
    assert [cell.strip() for cell in text.splitlines()[3].split("│")[1:-1]] == [
        "row0/seed-0", "running", "75 %", "5.5000", "0:01:05"
    ]  # fmt: skip
    assert "1 running, 1 waiting" in text


def test_a_long_grid_shows_what_matters_and_counts_the_rest(jobs, runs):
    for job, state in zip(jobs, ["done", "failed", "running"], strict=False):
        job.state = state
    text = drawn(jobs, runs, 12)
    assert "row0" not in text
    assert "row1/seed-0 │ failed" in text
    assert "row2/seed-0 │ running" in text
    assert "row3" not in text
    assert "1 done, 1 failed, 1 running, 9 waiting" in text
    assert "row3/seed-0  │ waiting" in drawn(jobs, runs, 40)


def test_elsewhere_a_line_tells_a_change(jobs, runs):
    jobs[0].state, jobs[0].started, jobs[0].ended = "done", 1.0, 3.0
    assert drawn(jobs[:2], runs, 40, terminal=False).splitlines() == [
        "row0/seed-0: done after 0:00:02", "row1/seed-0: waiting"
    ]  # fmt: skip
