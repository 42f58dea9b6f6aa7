"""`mcframe sweep` with real runs: compared, changed, interrupted and resumed, and with a row that fails."""

import json

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.sweep.grid import read_grid
from mcframe.sweep.plan import plan
from mcframe.sweep.table import DATA, PAGE, PICTURE

pytestmark = pytest.mark.launcher

TOKENS = 3072
GRID = """\
gin = ["smoke.gin"]
set = [
  "run.batch_tokens = 512", "logging.every = 512", "validation.every = 1024", "validation.windows = 4",
  "logging.tensorboard = False", "run.hooks = {'parent_stopper': {}}",
]
tokens = 3072
baseline = "base"
metrics = ["val/loss", "mc/tail_delta"]

[rows]
base = []
broken = ["run.optimizer = @optimizer.adamw", "optimizer.lr = 1e30"]
mean = ["run.gistnet = @gistnet.mean"]
"""

# Interrupts the sweep while one of its runs is at step 2, as Ctrl-C would, and waits until the sweep passes that on.
STOPPER = """
    import os
    import signal
    import time

    from mcframe.hookspecs import hookimpl
    from mcframe.training.flops import StepFlops

    def uncounted(*_):
        raise NotImplementedError  # a count takes two seconds

    if "RANK" in os.environ:  # not in the process of the tests
        StepFlops._run = uncounted

    @hookimpl
    def step_finished(run):
        if run.step == 2 and os.environ.get("STOP_PARENT"):
            received, until, handler = [], time.monotonic() + 60, signal.getsignal(signal.SIGTERM)

            def noted(number, frame):
                received.append(number)
                handler(number, frame)

            signal.signal(signal.SIGTERM, noted)
            os.kill(os.getppid(), signal.SIGINT)
            while not received and time.monotonic() < until:
                time.sleep(0.01)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def sweep(launches, folder, new_site):
    """Execute `mcframe sweep` with a grid, in a process of its own."""
    site = new_site(folder / "site")
    site.install("parent_stopper", STOPPER)

    def run(grid, *options, stop=False):
        (folder / "grid.toml").write_text(grid, "utf-8")
        command = ["sweep", str(folder / "grid.toml"), "--out", str(folder / "out"), *options]
        environment = {**site.environment, "STOP_PARENT": "yes" if stop else ""}
        return launches.command(*command, run_dir=folder / "out", environment=environment)

    return run


@pytest.fixture
def sweep_here(folder, monkeypatch, launches):
    """Call `mcframe sweep` in this process, where no run is to start. Returns the exit code and the output."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.syspath_prepend(folder / "site")
    monkeypatch.setenv("MCFRAME_CACHE", launches.environment["MCFRAME_CACHE"])

    def run(grid, *options):
        (folder / "grid.toml").write_text(grid, "utf-8")
        result = CliRunner().invoke(app, ["sweep", str(folder / "grid.toml"), "--out", str(folder / "out"), *options])
        return result.exit_code, " ".join(result.output.replace("│", " ").split())

    return run


@pytest.fixture
def train_base(launches, folder, sweep_here):
    """Train the row base of a grid in a forked rank, which starts faster, as the sweep would."""

    def train(grid):
        code, text = sweep_here(grid, "--list")  # writes the grid, and makes its plug-ins known
        assert code == 0, text
        base, _ = plan(read_grid(folder / "grid.toml"), folder / "out", ["base", "mean"], [0])
        environment = {"PYTHONPATH": str(folder / "site")}
        launches.run(*base.bindings, run_dir=base.directory, environment=environment).succeeded()

    return train


@pytest.mark.parametrize("finished", [1, pytest.param(0, marks=pytest.mark.matrix)])
def test_a_grid_is_compared(sweep, sweep_here, train_base, finished):
    grid = GRID.replace("broken =", "# broken =")
    if finished:
        train_base(grid)
    result = sweep(grid, "--jobs", "2")
    assert f"{finished} finished, {2 - finished} job(s) to do" in result.text
    assert result.code == 0, result.output
    out = result.run_dir
    check_table(out)
    written = (out / "mean" / "seed-0" / "metrics.jsonl").read_text()
    code, text = sweep_here(grid)
    assert code == 0, text
    assert "2 finished, 0 job(s) to do" in text

    changed = grid.replace('mean = ["', 'mean = ["gpt.depth = 1", "')
    code, text = sweep_here(changed, "--list")
    assert code == 0, text
    assert f"mean/seed-0 changed {TOKENS:,} of {TOKENS:,}" in text
    code, text = sweep_here(changed)
    assert code == 2, text
    assert "mean/seed-0 was trained with another configuration: gpt.depth: was 2, now 1" in text
    assert (out / "mean" / "seed-0" / "metrics.jsonl").read_text() == written


def check_table(out):
    """Check the table of the rows base and mean."""
    data = json.loads((out / DATA).read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert set(rows) == {"base", "mean"}
    assert rows["mean"]["comparable"]
    assert rows["base"]["seeds"]["0"]["train/tokens"] == TOKENS
    difference = rows["mean"]["seeds"]["0"]["val/loss"] - rows["base"]["seeds"]["0"]["val/loss"]
    assert rows["mean"]["differences"]["val/loss"] == {"mean": difference, "half": None, "n": 1}
    assert difference != 0
    assert "| mean | `run.gistnet = @gistnet.mean` |" in (out / PAGE).read_text()
    assert (out / PICTURE).stat().st_size > 1000


@pytest.mark.matrix
def test_a_grid_is_interrupted_and_resumed_and_a_row_fails(sweep):
    stopped = sweep(GRID, stop=True)
    assert stopped.code == 130, stopped.output
    out = stopped.run_dir
    base = json.loads((out / "base" / "seed-0" / "summary.json").read_text())
    assert base["status"] == "interrupted"
    assert 2 * 512 <= base["tokens"] < TOKENS
    assert not (out / "mean").exists()
    assert "base/seed-0: interrupted" in stopped.text
    assert not (out / PAGE).exists()

    resumed = sweep(GRID, "--jobs", "2")
    assert resumed.code == 1, resumed.output
    assert f"broken/seed-0 failed The end of {out / 'broken' / 'seed-0' / 'log.txt'}:" in resumed.text
    assert "is not finite after" in resumed.text  # from the message of the failed run
    log = " ".join((out / "base" / "seed-0" / "log.txt").read_text().split()).replace("│ ", "")
    assert f"resumed from {out}" in log
    assert "broken: no finished run for seed 0." in json.loads((out / DATA).read_text())["notes"]
    check_table(out)
