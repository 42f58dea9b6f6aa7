"""Resuming from a checkpoint with other settings: those that fit take effect, the others are refused."""

import shutil

import pytest

from mcframe_plugins.schedule.trapezoid import Trapezoid

pytestmark = pytest.mark.launcher

STEP = 512
EVERY_STEP = (
    f"run.batch_tokens = {STEP}", f"logging.every = {STEP}", f"checkpoint.every = {STEP}", "validation.every = 0",
    "validation.windows = 4",
)  # fmt: skip
FOUR_STEPS = (*EVERY_STEP, "checkpoint.keep = 9", f"run.total_tokens = {4 * STEP}")


@pytest.fixture
def trained(launches, tmp_path):
    """A copy of a run of four steps with a checkpoint after each."""
    result = launches.shared(*FOUR_STEPS).succeeded()
    return shutil.copytree(result.run_dir, tmp_path / "run")


def test_more_tokens_stretch_the_schedule(launches, trained):
    result = launches.run(*EVERY_STEP, f"run.total_tokens = {6 * STEP}", run_dir=trained).succeeded()
    assert "resumed from" in result.text
    rates = [result.metrics[step * STEP]["train/lr"] for step in (5, 6)]
    # The checkpoint's own rate for step 5 was the old schedule's end: 0.
    expected = [0.003 * Trapezoid().factor(step, 6) for step in (4, 5)]
    assert rates == pytest.approx(expected)
    assert min(rates) > 0.001


@pytest.mark.parametrize(
    ("setting", "was"),
    [
        (f"run.batch_tokens = {2 * STEP}", f"run.batch_tokens = {STEP}"),
        ("run.seed = 7", "run.seed = 0"),
    ],
)
def test_another_batch_or_seed_is_refused(launches, trained, setting, was):
    before = (trained / "metrics.jsonl").read_text("utf-8")
    result = launches.run(*EVERY_STEP, f"run.total_tokens = {8 * STEP}", setting, run_dir=trained)
    assert result.code == 2
    assert was in result.text
    assert (trained / "metrics.jsonl").read_text("utf-8").startswith(before)


def test_an_older_checkpoint_begins_a_branch_and_keeps_the_other(launches, trained):
    older = trained / "checkpoints" / f"tokens-{2 * STEP:015d}"
    settings = (*EVERY_STEP, f"run.total_tokens = {3 * STEP}", "checkpoint.keep = 1")
    result = launches.run(*settings, run_dir=trained, options=("--resume", str(older))).succeeded()
    assert result.checkpoints == [3 * STEP]
    archived = trained / "checkpoints" / "superseded"
    assert sorted(path.name for path in archived.iterdir()) == [f"tokens-{n * STEP:015d}" for n in (3, 4)]
    assert sorted(result.metrics) == [0, STEP, 2 * STEP, 3 * STEP]


def test_the_summary_counts_complete_parameters_at_zero_3(launches):
    short = ("run.total_tokens = 1024", "validation.every = 0", "validation.windows = 4", "gpt.width = 256")
    plain, split = (launches.run(*short, f"deepspeed.zero_stage = {stage}").succeeded().text for stage in (0, 3))
    for row in ("base model 1.7 M parameters", "G plain"):
        assert row in plain
        assert row in split
    figures = [words.partition("FLOPs a token")[2][:60] for words in (plain, split)]
    assert figures[0] == figures[1]
