"""`mcframe eval` on a run that was evaluated while it trained."""

import importlib
import json
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.metrics.catalogue import describe

SHORT = (
    "run.total_tokens = 2048", "evaluation.every = 1024", "validation.every = 0",
    "evaluation.gist_quality.windows = 8", "evaluation.gist_quality.lengths = (0.75,)",
    "evaluation.gist_quality.resamples = 50", "evaluation.focus_quality.windows = 4",
    "evaluation.focus_quality.budgets = (0.1, 0.5)", "evaluation.focus_quality.draws = 1",
    "evaluation.focus_quality.resamples = 50", "validation.windows = 4",
)  # fmt: skip


@pytest.fixture(scope="session")
def evaluated(launches):
    """Two steps, with an evaluation behind each."""
    return launches.shared(*SHORT).succeeded()


@pytest.fixture
def ask(monkeypatch, launches, evaluated):
    """Runs `mcframe eval` on that run, in this process."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("MCFRAME_CACHE", launches.environment["MCFRAME_CACHE"])

    def act(*arguments, run=evaluated.run_dir):
        return CliRunner().invoke(app, ["eval", str(run), *map(str, arguments)])

    return act


def metrics(folder):
    return json.loads((folder / "eval.json").read_text("utf-8"))["metrics"]


def test_training_logs_headlines_on_the_token_clock(evaluated):
    logged = {tokens: {n for n in entry if n.startswith("eval/")} for tokens, entry in evaluated.metrics.items()}
    assert sorted(tokens for tokens, names in logged.items() if names) == [1024, 2048]
    assert "eval/gist_quality/lod1_at_75/delta/gist/tail" in logged[1024]
    assert "eval/focus_quality/at_50/lens_minus/drop/random" in logged[1024]
    assert not any(name.endswith(("_low", "_high")) for name in logged[1024])
    for name in logged[2048]:
        assert describe(name).unit


@pytest.mark.launcher
def test_two_ranks_that_divide_the_weights_find_the_same(launches, evaluated):
    """Four sequences of `focus_quality` are fewer than two ranks take at once. The rest is filled, then left out."""
    shared = launches.shared(*SHORT, "deepspeed.zero_stage = 3", ranks=2).succeeded()
    for tokens in (1024, 2048):
        one = {n: v for n, v in evaluated.metrics[tokens].items() if n.startswith("eval/")}
        two = {n: v for n, v in shared.metrics[tokens].items() if n.startswith("eval/")}
        # A recovery and a gain are ratios, told only where something is far enough from 0.
        assert {n for n in one.keys() ^ two.keys() if "/recovery/" not in n and "/gain/" not in n} == set()
        for name in one.keys() & two.keys():
            if "/nll/" in name or "/delta/" in name or "/targets/" in name:
                assert two[name] == pytest.approx(one[name], abs=1e-3), name


def test_the_command_finds_what_training_logged_and_writes_it(ask, evaluated):
    result = ask()
    assert result.exit_code == 0, result.output
    folder = evaluated.run_dir / "evaluation"
    found = metrics(folder)
    logged = {n: v for n, v in evaluated.metrics[2048].items() if n.startswith("eval/")}
    assert {n for n in found if not n.endswith(("_low", "_high"))} == logged.keys()
    for name, value in logged.items():
        # float32 on both sides, batched alike
        assert found[name] == pytest.approx(value, abs=1e-4), name
    for name in found:
        assert describe(name).unit
        if name.endswith("_low"):
            assert found[name] <= found[name.removesuffix("_low") + "_high"]
    assert "spans of LOD1" in result.output
    assert "spans of LOD2" in result.output
    assert "a budget of 10 % (12 entries) is left out" in result.output
    assert "fewer than 20,000" in result.output
    whole = json.loads((folder / "eval.json").read_text("utf-8"))
    assert whole["run"]["tokens"] == 2048
    assert whole["evaluations"].keys() == {"gist_quality", "focus_quality"}
    charts = [chart for each in whole["evaluations"].values() for chart in each["charts"]]
    assert {chart["name"] for chart in charts} >= {
        "gist_quality_lod1_at_75_delta",
        "focus_quality_drop",
        "focus_quality_gist",
    }
    for chart in charts:
        assert (folder / f"{chart['name']}.png").read_bytes().startswith(b"\x89PNG")
        assert all(len(points) for points in chart["lines"].values())


def test_one_evaluation_with_other_settings_goes_elsewhere(ask, tmp_path):
    result = ask(
        "--evaluation",
        "focus_quality",
        "--out",
        tmp_path,
        "--windows",
        6,
        "--set",
        "evaluation.focus_quality.budgets=(0.9,)",
    )
    assert result.exit_code == 0, result.output
    found = metrics(tmp_path)
    assert found["eval/focus_quality/at_90/targets"] == 6 * 16
    assert not any(name.startswith(("eval/gist_quality", "eval/focus_quality/at_50")) for name in found)


def test_a_text_model_is_tried_on_recall(ask, tmp_path):
    task = (
        "context.tail = 15",
        "evaluation.gist_quality.task = @task.recall",
        "evaluation.gist_quality.name = 'recall'",
        "task.recall.keys = 56",
    )
    settings = [part for setting in task for part in ("--set", setting)]
    result = ask("--evaluation", "recall", "--out", tmp_path, *settings)
    assert result.exit_code == 0, result.output
    found = metrics(tmp_path)
    assert found["eval/recall/lod1_at_75/targets/tail"] == 8 * 8
    assert 0 < found["eval/recall/lod1_at_75/targets/evidence"] < 8 * 8
    assert "eval/recall/lod1_at_75/accuracy/full/evidence" in found
    assert "answer in a collapsed block" in result.output


def test_a_task_that_does_not_fit_is_a_users_error(ask, tmp_path):
    result = ask("--out", tmp_path, "--set", "evaluation.gist_quality.task = @task.recall")
    assert result.exit_code == 2
    assert "context.tail = 15" in " ".join(result.output.split())


QUICK = ("run.total_tokens = 1024", "validation.every = 0", "validation.windows = 4")


def test_baselines(ask, launches, evaluated, tmp_path):
    baseline = launches.shared(*QUICK, "run.gistnet = @gistnet.mean").succeeded().run_dir
    result = ask("--evaluation", "gist_quality", "--out", tmp_path, "--mean-baseline", baseline)
    assert result.exit_code == 0, result.output
    found = metrics(tmp_path)
    assert "eval/gist_quality/lod1_at_75/delta/mean_baseline/tail" in found
    same = ask("--evaluation", "gist_quality", "--out", tmp_path, "--mean-baseline", baseline, run=baseline)
    assert same.exit_code == 0, same.output
    found = metrics(tmp_path)
    assert found["eval/gist_quality/lod1_at_75/delta/mean_baseline/tail"] == pytest.approx(
        found["eval/gist_quality/lod1_at_75/delta/mean/tail"]
    )
    other = ask("--mean-baseline", baseline, "--set", "context.tail = 15")
    assert other.exit_code == 2
    assert "the mean baseline" in other.output


def test_what_is_no_baseline_is_refused(ask, launches, evaluated):
    plain = launches.shared(*QUICK, "run.variants = @variants.none").succeeded().run_dir
    for option, run, reason in (
        ("--drop-baseline", evaluated.run_dir, "was trained with a GistNet"),
        ("--mean-baseline", evaluated.run_dir, "was not trained with means"),
        ("--drop-baseline", plain, "was trained without variants"),
        ("--mean-baseline", plain, "was trained without variants"),
    ):
        refused = ask(option, run)
        assert refused.exit_code == 2
        assert reason in refused.output


def test_overrides_that_change_the_model_are_refused(ask):
    refused = ask("--set", "gpt.depth = 3")
    assert refused.exit_code == 2
    assert "does not fit this configuration" in refused.output
    assert "Traceback" not in refused.output


def test_mistakes_are_told_in_one_message(ask, tmp_path):
    unknown = ask("--evaluation", "gist_qualty")
    assert unknown.exit_code == 2
    assert "no plug-in offers @evaluation.gist_qualty (did you mean @evaluation.gist_quality?)" in unknown.output
    nothing = ask(run=tmp_path)
    assert nothing.exit_code == 2
    assert "holds no complete checkpoint" in nothing.output
    for result in (unknown, nothing):
        assert "Traceback" not in result.output
    twice = ask("--set", "run.evaluations = [@evaluation.focus_quality, @evaluation.focus_quality]")
    assert twice.exit_code == 2
    assert "two evaluations are called 'focus_quality'" in twice.output


PLUGIN = '''
from mcframe.hookspecs import Evaluation, EvalResult, Interval, Table, hookimpl


class Plain(Evaluation):
    """The uncompressed NLL, and nothing else."""

    name = "plain"

    def __init__(self, *, windows: int = 4):
        self.windows = windows

    def run(self, model):
        held = model.held_out(self.windows)
        focus = held.tokens.new_zeros(held.tokens.shape[0], model.tree.blocks)
        model.announce(held.tokens.shape[0])
        nll = model.score(held.tokens, focus, "full")[0]
        value = float(nll[held.loss_mask].mean())
        table = Table("plain", ("what", "nats"), [("full", Interval(value, value, value))])
        return EvalResult({"eval/plain/nll": value}, tables=[table])


@hookimpl
def register_plugins(register):
    register("plain", Plain)
'''


def test_an_evaluation_of_somebody_elses(ask, evaluated, tmp_path, monkeypatch):
    (tmp_path / "mcframe_plain.py").write_text(textwrap.dedent(PLUGIN), "utf-8")
    info = tmp_path / "mcframe_plain-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mcframe-plain\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text("[mcframe.plugins]\nit = mcframe_plain\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    try:
        result = ask("--evaluation", "plain", "--out", tmp_path / "out", "--set", "evaluation.plain.windows = 4")
    finally:
        sys.modules.pop("mcframe_plain", None)
    assert result.exit_code == 0, result.output
    # Four windows, as validation reads.
    assert metrics(tmp_path / "out")["eval/plain/nll"] == pytest.approx(evaluated.curve("val/loss")[-1], abs=1e-4)
