"""Runs of a grid: configurations, fingerprints and progress. Checkpoints are folders without weights here."""

import json
import re
from pathlib import Path

import pytest
import torch

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.registry.discovery import PluginOptions, discover
from mcframe.sweep.grid import read_grid
from mcframe.sweep.plan import changes, differences, plan, refuse_changed
from mcframe.sweep.runs import jobs_of
from mcframe.training.build import build_model
from mcframe.training.provenance import write_record
from tests.support.checkpoint_files import write_checkpoint

ROOT = Path(__file__).parents[2]
GRID = """\
gin = ["smoke.gin"]
set = ["optimizer.lr = 0.001"]
tokens = 5000
seeds = [0, 1]

[rows]
base = []
mean = ["run.gistnet = @gistnet.mean", "optimizer.lr = 0.002"]

[rows.later]
from = "base"
set = ["run.trainable = ('gistnet',)"]
"""


@pytest.fixture
def planned(tmp_path):
    def of(text=GRID, rows=None, seeds=(0, 1)):
        (tmp_path / "grid.toml").write_text(text, "utf-8")
        grid = read_grid(tmp_path / "grid.toml")
        return plan(grid, tmp_path / "out", rows or list(grid.rows), seeds)

    return of


def trained(run, tokens=None, config=None):
    """Write the files of a run that determine its progress and configuration."""
    write_checkpoint(run.directory, run.tokens if tokens is None else tokens)
    (run.directory / "config.gin").write_text(run.config if config is None else config, "utf-8")


def test_bindings_are_those_of_the_grid_then_the_row_then_tokens_and_seed(planned, tmp_path):
    runs = planned()
    assert [run.name for run in runs] == [f"{row}/seed-{seed}" for row in ("base", "mean", "later") for seed in (0, 1)]
    mean = runs[3]
    assert mean.directory == tmp_path / "out" / "mean" / "seed-1"
    assert mean.bindings == (
        "optimizer.lr = 0.001", "run.gistnet = @gistnet.mean", "optimizer.lr = 0.002",
        "run.total_tokens = 5000", "run.seed = 1",
    )  # fmt: skip
    assert "optimizer.lr = 0.002\n" in mean.config
    assert "run.gistnet = @gistnet.mean\n" in mean.config
    assert (mean.tokens, mean.step_tokens) == (4096, 1024)  # complete steps of smoke.gin
    assert f"run.start_from = {str(tmp_path / 'out' / 'base' / 'seed-1')!r}" in runs[5].bindings


def test_the_fingerprint_is_the_config_that_the_run_writes(planned):
    run = planned()[2]
    loaded = load_run_config(["smoke.gin"], run.bindings)
    assert loaded.config.bound() == run.config


def test_rows_that_others_start_from_are_included(planned):
    assert [run.row.name for run in planned(rows=["later"], seeds=[7])] == ["base", "later"]
    with pytest.raises(UserError, match=re.escape("has no row 'maen' (did you mean mean?)")):
        planned(rows=["maen"])


def test_progress_follows_complete_checkpoints(planned):
    run = planned()[0]
    assert (run.progress, run.trained) == ("new", 0)
    trained(run, 2048)
    assert (run.progress, run.trained) == ("unfinished", 2048)
    trained(run, 4096)
    assert run.progress == "finished"


def test_a_changed_row_is_refused_with_what_differs(planned):
    for run in planned():
        trained(run)
    refuse_changed(planned())
    changed = planned(GRID.replace("0.002", "0.004").replace("@gistnet.mean", "@gistnet.multihead"))
    with pytest.raises(UserError) as error:
        refuse_changed(changed)
    assert "mean/seed-0" in error.value.message
    assert "optimizer.lr: was 0.002, now 0.004" in error.value.message
    assert "run.gistnet: was @gistnet.mean, now @gistnet.multihead" in error.value.message
    assert "remove the folder" in error.value.remedy
    refuse_changed([run for run in changed if run.row.name == "base"])  # its rows have not changed


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_other_tokens_and_other_included_files_are_changes(planned, tokens):
    run = planned()[0]
    trained(run, tokens, run.config.replace("run.total_tokens = 5000", "run.total_tokens = 9000"))
    assert changes(run) == ["run.total_tokens: was 9000, now 5000"]
    trained(run, tokens, run.config + "data.validation_fraction = 0.5\n")
    assert changes(run) == ["data.validation_fraction: was 0.5, now not bound"]


def test_a_run_without_a_checkpoint_may_change(planned):
    run = planned()[0]
    run.directory.mkdir(parents=True)
    (run.directory / "config.gin").write_text("run.seed = 9\n")
    assert changes(run) == []
    assert differences("a = 1\nb = 2\n", "b = 3\nc = 4\n") == [
        "a: was 1, now not bound", "b: was 2, now 3", "c: was not bound, now 4"
    ]  # fmt: skip


def test_rows_that_bind_the_same_are_refused(planned):
    with pytest.raises(UserError, match=r"rows again and base of .* bind the same"):
        planned(GRID.replace("[rows]", "[rows]\nagain = ['optimizer.lr = 0.001']"))


def test_a_wrong_binding_has_its_line_in_the_grid(planned):
    with pytest.raises(UserError, match=r"row mean: optimizer has no parameter 'l' .*did you mean lr") as error:
        planned(GRID.replace("optimizer.lr = 0.002", "optimizer.l = 0.002"))
    assert (error.value.location.file.name, error.value.location.line) == ("grid.toml", 8)
    with pytest.raises(UserError, match="row base: ") as error:
        planned(GRID.replace("optimizer.lr = 0.001", "optimizer.lr = -1"))
    assert (error.value.location.file.name, error.value.location.line) == ("grid.toml", 2)


def test_finished_runs_are_no_jobs_and_starts_come_first(planned, tmp_path):
    text = GRID.replace("[rows]\nbase = []", "[rows]").replace('from = "base"', 'from = "base"') + "\n[rows.base]\n"
    runs = planned(text)
    assert [run.row.name for run in runs][::2] == ["mean", "later", "base"]
    grid = read_grid(tmp_path / "grid.toml")
    jobs = jobs_of(grid, runs, tmp_path / "out")
    assert [job.name for job in jobs] == [f"{row}/seed-{seed}" for row in ("mean", "base", "later") for seed in (0, 1)]
    after = {job.name: [other.name for other in job.after] for job in jobs}
    assert after["later/seed-1"] == ["base/seed-1"]
    assert after["base/seed-1"] == []
    for run in runs:
        trained(run, 4096 if run.row.name == "base" else 1024)
    assert [job.name for job in jobs_of(grid, runs, tmp_path / "out")] == [
        "mean/seed-0", "mean/seed-1", "later/seed-0", "later/seed-1"
    ]  # fmt: skip


def test_evaluations_follow_the_runs_that_they_read_and_are_not_repeated(planned, tmp_path):
    runs = planned("evaluate = ['--drop-baseline', '{out}/base/seed-{seed}']\n" + GRID)
    grid, out = read_grid(tmp_path / "grid.toml"), tmp_path / "out"
    jobs = {job.name: job for job in jobs_of(grid, runs, out)}
    assert len(jobs) == 12
    needed = [other.name for other in jobs["mean/seed-1 evaluation"].after]
    assert needed == ["mean/seed-1", "base/seed-1"]
    for run in runs:
        trained(run)
    job = {job.name: job for job in jobs_of(grid, runs, out)}["mean/seed-1 evaluation"]
    assert job.after == []
    command, _ = job.launch()
    folder = runs[3].directory
    assert list(command)[3:] == [
        "eval", str(folder), "--drop-baseline", str(out / "base" / "seed-1"), "--out", str(folder / "evaluation")
    ]  # fmt: skip
    assert not job.succeeded()
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "eval.json").write_text('{"metrics": {}}')
    assert job.succeeded()
    assert "mean/seed-1 evaluation" not in {job.name for job in jobs_of(grid, runs, out)}
    other = planned("evaluate = ['--windows', '4']\n" + GRID)  # other options
    grid = read_grid(tmp_path / "grid.toml")
    assert "mean/seed-1 evaluation" in {job.name for job in jobs_of(grid, other, out)}


def test_a_row_may_be_excluded_from_the_evaluation(planned, tmp_path):
    runs = planned(
        "evaluate = true\n"
        + GRID.replace(
            "base = []\n", "base = []\nplain = { set = ['run.variants = @variants.none'], evaluate = false }\n"
        )
    )
    names = [job.name for job in jobs_of(read_grid(tmp_path / "grid.toml"), runs, tmp_path / "out")]
    assert "base/seed-0 evaluation" in names
    assert "plain/seed-0" in names
    assert "plain/seed-0 evaluation" not in names


def test_ports_of_runs_differ(planned, tmp_path):
    runs = planned()
    grid = read_grid(tmp_path / "grid.toml")
    launches = [job.launch() for job in jobs_of(grid, runs, tmp_path / "out")]
    assert len({variables["MASTER_PORT"] for _, variables in launches}) == len(runs)
    assert all("deepspeed.launcher.runner" not in command for command, _ in launches)
    planned("ranks = 2\n" + GRID)
    command, variables = jobs_of(read_grid(tmp_path / "grid.toml"), runs, tmp_path / "out")[0].launch()
    assert variables == {}
    assert list(command)[4:7] == ["--num_accelerators", "2", "--master_port"]


@pytest.mark.parametrize(
    "page", ["docs/sweeps.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("gin/sweeps/*.toml"))]
)
def test_grids_of_docs_and_presets_can_be_built(page, tmp_path):
    text = (ROOT / page).read_text("utf-8")
    found = re.search(r"```toml\n(gin.*?)```", text, re.S) if page.endswith(".md") else None
    (tmp_path / "grid.toml").write_text(found[1] if found else text, "utf-8")
    grid = read_grid(tmp_path / "grid.toml")
    runs = plan(grid, tmp_path / "out", list(grid.rows), [0])
    assert len(runs) == len(grid.rows) > 0
    for run in runs:
        run_config = load_run_config(grid.gin, run.bindings).run_config
        with torch.device("meta"):
            build_model(run_config, run_config.tokenizer().vocab_size)
        assert (run.tokens, run.step_tokens) == (grid.tokens, run_config.batch_tokens)


# ---- plug-ins ------------------------------------------------------------------------------------
NETS = """
from mcframe.hookspecs import hookimpl
from mcframe_plugins.gistnet.mean import MeanGistNet
from tests.support.checkpoint_files import write_checkpoint

@hookimpl
def register_plugins(register):
    register("mine", MeanGistNet)
"""


@pytest.fixture
def excluded(tmp_path, new_site, monkeypatch):
    new_site(tmp_path / "site").install("excluded", "raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("excluded")
def test_plugins_of_the_command_line_reach_every_run_and_a_changed_file_is_refused(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(NETS)
    (tmp_path / "grid.toml").write_text(GRID.replace("@gistnet.mean", "@gistnet.mine"))
    grid, plugins = read_grid(tmp_path / "grid.toml"), PluginOptions(named=(str(file),), without=("excluded",))

    def planned(plugins=plugins):
        return plan(grid, tmp_path / "out", ["mean"], [0], plugins)

    with pytest.raises(UserError, match=r"unknown plug-in @gistnet\.mine") as caught:
        planned(PluginOptions())
    assert str(tmp_path / "grid.toml") in str(caught.value.location)
    (run,) = planned()
    (job,) = jobs_of(grid, [run], tmp_path / "out")
    command = list(job.launch()[0])
    assert command[command.index("--plugin") + 1] == str(file)
    assert command[command.index("--no-plugin") + 1] == "excluded"

    trained(run)
    registry = discover(plugins)
    (run.directory / "provenance.json").write_text(json.dumps(write_record(run.directory, registry)))
    refuse_changed(planned())
    file.write_text(NETS + "# changed\n")
    with pytest.raises(UserError, match=r"nets\.py"):
        refuse_changed(planned())
