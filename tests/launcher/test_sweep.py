"""`mcframe sweep` with real runs: interrupted, gone on with, a row that fails, a row that is changed."""

import json
import sys

import pytest

pytestmark = pytest.mark.launcher

GRID = """\
gin = ["smoke.gin"]
set = [
  "run.batch_tokens = 512", "logging.every = 512", "validation.every = 2048", "validation.windows = 4",
  "logging.tensorboard = False",
]
tokens = 4096
baseline = "base"
metrics = ["val/loss", "mc/tail_delta"]

[rows]
base = []
broken = ["optimizer.name = 'adamw'", "optimizer.lr = 1e30"]
mean = ["run.gistnet = @gistnet.mean"]
"""

# Interrupts the sweep, as a Ctrl-C would, while a run of it is at step 3; then gives it time to pass that on.
STOPPER = """
    import os
    import signal
    import time

    from mcframe.hookspecs import hookimpl

    @hookimpl
    def step_finished(run):
        if run.step == 3 and os.environ.get("STOP_PARENT"):
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(1.0)
"""


@pytest.fixture(scope="module")
def sweep(launches, tmp_path_factory, new_site):
    site = new_site(tmp_path_factory.mktemp("stopper"))
    site.install("parent_stopper", STOPPER)
    folder = tmp_path_factory.mktemp("sweep")

    def run(grid, *options, stop=False):
        (folder / "grid.toml").write_text(grid, "utf-8")
        command = [
            sys.executable,
            "-c",
            "from mcframe.cli.app import main; main()",
            "sweep",
            str(folder / "grid.toml"),
        ]
        environment = {**site.environment, "STOP_PARENT": "yes" if stop else ""}
        return launches.execute(
            [*command, "--out", str(folder / "out"), *options], run_dir=folder / "out", environment=environment
        )

    return run


def test_a_grid_is_interrupted_gone_on_with_and_compared(sweep):
    stopped = sweep(GRID, stop=True)
    assert stopped.code == 130, stopped.output
    out = stopped.run_dir
    base = json.loads((out / "base" / "seed-0" / "summary.json").read_text())
    assert base["status"] == "interrupted"
    assert 3 * 512 <= base["tokens"] < 4096
    assert not (out / "mean").exists()
    assert "base/seed-0: interrupted" in stopped.words
    assert "To resume: the same command." in stopped.words
    assert not (out / "sweep.md").exists()

    on = sweep(GRID, "--jobs", "2")
    assert on.code == 1, on.output
    assert f"broken/seed-0 failed The end of {out / 'broken' / 'seed-0' / 'log.txt'}:" in on.words
    assert "the loss is" in on.words  # of the failed run's own message
    assert f"resumed from {out}" in " ".join((out / "base" / "seed-0" / "log.txt").read_text().split()).replace(
        "│ ", ""
    )
    data = json.loads((out / "sweep.json").read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert set(rows) == {"base", "mean"}
    assert rows["mean"]["comparable"]
    assert rows["base"]["seeds"]["0"]["train/tokens"] == 4096
    difference = rows["mean"]["seeds"]["0"]["val/loss"] - rows["base"]["seeds"]["0"]["val/loss"]
    assert rows["mean"]["differences"]["val/loss"] == {"mean": difference, "half": None, "n": 1}
    assert difference != 0
    assert "broken: no finished run for seed 0." in data["notes"]
    assert "| mean | `run.gistnet = @gistnet.mean` |" in (out / "sweep.md").read_text()
    assert (out / "sweep.png").stat().st_size > 1000

    written = (out / "mean" / "seed-0" / "metrics.jsonl").read_text()
    again = sweep(GRID, "--only", "mean", "--only", "base")
    assert again.code == 0, again.output
    assert "2 runs of 2 rows" in again.words
    assert "2 finished, 0 job(s) to do" in again.words

    changed = GRID.replace('mean = ["', 'mean = ["gpt.depth = 1", "')
    listed = sweep(changed, "--list")
    assert listed.code == 0, listed.output
    assert "mean/seed-0 changed 4,096 of 4,096" in listed.words.replace("│", " ").replace("  ", " ")
    refused = sweep(changed)
    assert refused.code == 2, refused.output
    assert "mean/seed-0 was trained with another configuration: gpt.depth: was 2, now 1" in refused.words
    assert "→ Restore it" in refused.words
    assert (out / "mean" / "seed-0" / "metrics.jsonl").read_text() == written
