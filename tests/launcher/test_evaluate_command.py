"""`mcframe eval` on a run that was evaluated while it trained."""

import importlib
import json
import re
import sys

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.metrics.catalogue import describe

SHORT = (
    "run.total_tokens = 2048", "evaluation.every = 1024", "validation.every = 0",
    "evaluation.gist_quality.windows = 8", "evaluation.gist_quality.lengths = (0.75,)",
    "evaluation.focus_quality.windows = 4",
    "evaluation.focus_quality.budgets = (0.1, 0.5)", "evaluation.focus_quality.draws = 1",
    "validation.windows = 4",
)  # fmt: skip


@pytest.fixture(scope="session")
def evaluated(launches):
    """Two steps, with an evaluation after each."""
    return launches.shared(*SHORT).succeeded()


@pytest.fixture
def evaluate(monkeypatch, launches, evaluated):
    """Call `mcframe eval` on that run, in this process."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("MCFRAME_CACHE", launches.environment["MCFRAME_CACHE"])

    def call(*arguments, run=evaluated.run_dir):
        return CliRunner().invoke(app, ["eval", str(run), *map(str, arguments)])

    return call


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
def test_two_ranks_at_zero_3_find_the_same(launches, evaluated):
    """Two ranks score more sequences at once than the four of `focus_quality`; padding is removed again."""
    settings = (*SHORT, "evaluation.every = 2048", "deepspeed.zero_stage = 3")
    sharded = launches.run(*settings, ranks=2).succeeded()
    one, two = ({n: v for n, v in run.metrics[2048].items() if n.startswith("eval/")} for run in (evaluated, sharded))
    # Recovery and gain are ratios, reported only where the denominator is far enough from 0.
    assert {n for n in one.keys() ^ two.keys() if "/recovery/" not in n and "/gain/" not in n} == set()
    compared = [n for n in one.keys() & two.keys() if any(each in n for each in ("/nll/", "/delta/", "/targets/"))]
    assert compared
    for name in compared:
        assert two[name] == pytest.approx(one[name], abs=1e-3), name


def test_the_command_finds_what_training_logged_and_writes_it(evaluate, evaluated):
    result = evaluate()
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
    assert "a budget of 10 %" in result.output
    assert re.search(r"targets after the cursor are of \d+ document", result.output)
    content = json.loads((folder / "eval.json").read_text("utf-8"))
    assert content["run"]["tokens"] == 2048
    assert content["evaluations"].keys() == {"gist_quality", "focus_quality"}
    charts = [chart for each in content["evaluations"].values() for chart in each["charts"]]
    assert {chart["name"] for chart in charts} >= {
        "gist_quality_lod1_at_75_delta",
        "focus_quality_drop",
        "focus_quality_gist",
    }
    for chart in charts:
        assert (folder / f"{chart['name']}.png").read_bytes().startswith(b"\x89PNG")
        assert all(len(points) for points in chart["lines"].values())


def test_one_evaluation_with_other_settings_goes_elsewhere(evaluate, tmp_path):
    budgets = ("--set", "evaluation.focus_quality.budgets=(0.9,)")
    result = evaluate("--evaluation", "focus_quality", "--out", tmp_path, "--windows", 6, *budgets)
    assert result.exit_code == 0, result.output
    found = metrics(tmp_path)
    assert found["eval/focus_quality/at_90/targets"] == 6 * 16
    assert not any(name.startswith(("eval/gist_quality", "eval/focus_quality/at_50")) for name in found)


def test_a_text_model_is_evaluated_on_recall(evaluate, tmp_path):
    task = (
        "context.tail = 15",
        "evaluation.gist_quality.task = @task.recall",
        "evaluation.gist_quality.name = 'recall'",
        "task.recall.keys = 56",
    )
    settings = [part for setting in task for part in ("--set", setting)]
    result = evaluate("--evaluation", "recall", "--out", tmp_path, *settings)
    assert result.exit_code == 0, result.output
    found = metrics(tmp_path)
    assert found["eval/recall/lod1_at_75/targets/tail"] == 8 * 8
    assert 0 < found["eval/recall/lod1_at_75/targets/evidence"] < 8 * 8
    assert "eval/recall/lod1_at_75/accuracy/full/evidence" in found


def test_a_task_that_does_not_fit_is_refused(evaluate, tmp_path):
    result = evaluate("--out", tmp_path, "--set", "evaluation.gist_quality.task = @task.recall")
    assert result.exit_code == 2
    assert "context.tail = 15" in " ".join(result.output.split())


QUICK = (
    "run.batch_tokens = 512", "run.total_tokens = 512", "validation.every = 0", "validation.windows = 4",
    "evaluation.gist_quality.windows = 8", "evaluation.gist_quality.lengths = (0.75,)",
)  # fmt: skip


def test_baselines(evaluate, launches, evaluated, tmp_path):
    baseline = launches.shared(*QUICK, "run.gistnet = @gistnet.mean").succeeded().run_dir
    result = evaluate("--evaluation", "gist_quality", "--out", tmp_path, "--mean-baseline", baseline)
    assert result.exit_code == 0, result.output
    found = metrics(tmp_path)
    assert "eval/gist_quality/lod1_at_75/delta/mean_baseline/tail" in found
    same = evaluate("--evaluation", "gist_quality", "--out", tmp_path, "--mean-baseline", baseline, run=baseline)
    assert same.exit_code == 0, same.output
    found = metrics(tmp_path)
    assert found["eval/gist_quality/lod1_at_75/delta/mean_baseline/tail"] == pytest.approx(
        found["eval/gist_quality/lod1_at_75/delta/mean/tail"]
    )
    other = evaluate("--mean-baseline", baseline, "--set", "context.tail = 15")
    assert other.exit_code == 2
    assert "the mean baseline" in other.output


def test_runs_that_cannot_be_baselines_are_refused(evaluate, launches, evaluated):
    plain = launches.shared(*QUICK, "run.variants = @variants.none").succeeded().run_dir
    for option, run, reason in (
        ("--drop-baseline", evaluated.run_dir, "with a GistNet"),
        ("--mean-baseline", evaluated.run_dir, "means"),
        ("--drop-baseline", plain, "without variants"),
        ("--mean-baseline", plain, "without variants"),
    ):
        refused = evaluate(option, run)
        assert refused.exit_code == 2
        assert reason in refused.output


def test_overrides_that_change_the_model_are_refused(evaluate):
    refused = evaluate("--set", "gpt.depth = 3")
    assert refused.exit_code == 2
    assert "Traceback" not in refused.output


def test_nothing_to_evaluate_is_a_mistake(evaluate, tmp_path):
    result = evaluate("--out", tmp_path / "out", "--set", "run.evaluations = []")
    assert result.exit_code == 2
    assert "expected an evaluation, got none" in result.output
    assert not (tmp_path / "out").exists()


def test_mistakes_are_reported_in_one_message(evaluate, tmp_path):
    unknown = evaluate("--evaluation", "gist_qualty")
    assert unknown.exit_code == 2
    assert "did you mean @evaluation.gist_quality?" in unknown.output
    nothing = evaluate(run=tmp_path)
    assert nothing.exit_code == 2
    assert "holds no complete checkpoint" in nothing.output
    for result in (unknown, nothing):
        assert "Traceback" not in result.output
    twice = evaluate("--set", "run.evaluations = [@evaluation.focus_quality, @evaluation.focus_quality]")
    assert twice.exit_code == 2
    assert "'focus_quality'" in twice.output


PLUGIN = '''
from mcframe.hookspecs import Evaluation, EvalResult, Interval, Table, hookimpl


class Plain(Evaluation):
    """The uncompressed NLL."""

    name = "plain"

    def __init__(self, *, windows: int = 4):
        self.windows = windows

    def run(self, model):
        held = model.held_out(self.windows)
        focus = held.tokens.new_zeros(held.tokens.shape[0], model.tree.blocks)
        model.announce(held.tokens.shape[0])
        nll = model.score(held.tokens, focus, "full")[0]
        value = float(nll[held.loss_mask].mean())
        table = Table("plain", ("input", "nats"), [("full", Interval(value, value, value))])
        return EvalResult({"eval/plain/nll": value}, tables=[table])


@hookimpl
def register_plugins(register):
    register("plain", Plain)
'''


@pytest.fixture
def third_party(site, monkeypatch):
    """Install the evaluation `plain` from a text."""

    def install(text):
        site.install("mcframe_plain", text)
        monkeypatch.syspath_prepend(site.folder)
        importlib.invalidate_caches()

    yield install
    sys.modules.pop("mcframe_plain", None)


def test_a_third_party_evaluation(evaluate, evaluated, third_party, tmp_path):
    third_party(PLUGIN)
    result = evaluate("--evaluation", "plain", "--out", tmp_path / "out", "--set", "evaluation.plain.windows = 4")
    assert result.exit_code == 0, result.output
    # Of the four windows that validation reads.
    assert metrics(tmp_path / "out")["eval/plain/nll"] == pytest.approx(evaluated.curve("val/loss")[-1], abs=1e-4)


def test_an_evaluation_that_fails_leaves_what_was_found_before(evaluate, third_party, tmp_path):
    third_party(PLUGIN.replace("        focus =", "        raise ValueError('no focus')\n        focus ="))
    both = ("--evaluation", "focus_quality", "--evaluation", "plain")
    result = evaluate(*both, "--out", tmp_path)
    assert result.exit_code == 2
    assert "no focus" in result.output
    assert "focus_quality: 50 % of the window" in result.output
    assert any(name.startswith("eval/focus_quality/at_50/") for name in metrics(tmp_path))


def test_progress_without_a_terminal_is_lines(evaluate, tmp_path, monkeypatch):
    arguments = ("--evaluation", "focus_quality", "--out", tmp_path, "--windows", 6)  # no multiple of the batch
    assert "evaluating contexts" not in evaluate(*arguments).output  # too quick for a line
    monkeypatch.setattr("mcframe.cli.evaluate.LINE_SECONDS", 0.0)
    lines = re.findall(r"evaluating contexts: ([\d,]+) of ([\d,]+) after 0:", evaluate(*arguments).output)
    assert len(lines) > 2
    assert lines[-1][0] == lines[-1][1]
    arms = ("--evaluation", "long_context", "--out", tmp_path, "--windows", 3)
    lengths = ("--set", "evaluation.long_context.multiples = (1, 2)")
    lines = re.findall(r"evaluating contexts: (\d+) of (\d+) after 0:", evaluate(*arms, *lengths).output)
    assert lines == [(str(done), "6") for done in range(1, 7)]
