"""Output of `mcframe sweep`: the plan, the progress of runs, the results."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.cli.sweep import _Display, _summary
from mcframe.sweep.grid import Grid, Row
from mcframe.sweep.jobs import Job
from mcframe.sweep.plan import PlannedRun
from mcframe.sweep.results import RunResult, compare


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


def test_running_job_has_tokens_and_loss(jobs, runs, tmp_path):
    jobs[0].state, jobs[0].started, jobs[0].ended = "running", 10.0, 75.0
    (tmp_path / "0").mkdir()
    lines = [{"tokens": 100, "step": 1, "val/loss": 5.5}, {"tokens": 300, "step": 3, "train/loss": 3.0}]
    (tmp_path / "0" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"tokens": 40')
    text = drawn(jobs[:2], runs, 40)
    assert [cell.strip() for cell in text.splitlines()[3].split("│")[1:-1]] == [
        "row0/seed-0", "running", "75 %", "5.5000", "0:01:05"
    ]  # fmt: skip
    assert "1 running, 1 waiting" in text


def test_long_grid_shows_running_and_failed_jobs_and_counts_the_rest(jobs, runs):
    for job, state in zip(jobs, ["done", "failed", "running"], strict=False):
        job.state = state
    text = drawn(jobs, runs, 12)
    assert "row0" not in text
    assert "row1/seed-0 │ failed" in text
    assert "row2/seed-0 │ running" in text
    assert "row3" not in text
    assert "1 done, 1 failed, 1 running, 9 waiting" in text
    assert "row3/seed-0  │ waiting" in drawn(jobs, runs, 40)


def test_each_change_is_a_line_without_a_terminal(jobs, runs):
    jobs[0].state, jobs[0].started, jobs[0].ended = "done", 1.0, 3.0
    assert drawn(jobs[:2], runs, 40, terminal=False).splitlines() == [
        "row0/seed-0: done after 0:00:02", "row1/seed-0: waiting"
    ]  # fmt: skip


METRICS = ("val/loss", "eval/gist_quality/lod1_at_75/delta/gist/tail", "eval/gist_quality/lod1_at_75/recovery/gist/16")
NAMES = ("transformer", "distil_where_it_counts")


def summary(width):
    grid = Grid(Path("g.toml"), (), (), 1, (0, 1), {each: Row(each) for each in NAMES}, NAMES[0], METRICS)
    runs = {
        name: {seed: RunResult({**dict.fromkeys(METRICS, index + seed), "train/tokens": 1}) for seed in (0, 1)}
        for index, name in enumerate(NAMES)
    }
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(_summary(compare(grid, runs, (0, 1)), console))
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines()]


def test_results_fit_80_columns():
    lines = summary(80)
    for metric in METRICS:
        at = lines.index([metric, ""])
        assert lines[at + 1 : at + 3] == [["transformer", "0.50 ± 6.35"], ["distil_where_it_counts", "+1.0000 ± 0"]]


def test_results_have_a_column_a_metric_if_they_fit():
    assert ["distil_where_it_counts", *["+1.0000 ± 0"] * 3] in summary(200)


def test_plan_fits_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    binding = "loss.reconstruction.weight = 0.3"
    rows = f'[rows]\n{NAMES[0]} = []\n{NAMES[1]} = ["{binding}"]'
    file = tmp_path / "grid.toml"
    file.write_text(f'gin = ["quickstart.gin"]\ntokens = 245760\nseeds = [0]\nbaseline = "{NAMES[0]}"\n{rows}\n')
    result = CliRunner().invoke(app, ["sweep", str(file), "--list", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines()]
    assert [NAMES[1], binding] in lines
    assert [f"{NAMES[1]}/seed-0", "new", "0 of 245,760"] in lines
