"""Losses and gradients that are not finite, and spikes: skipped, rolled back or stopped for, and run again."""

import json
import math

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.training.anomaly_record import records
from tests.support.anomalous import MARK
from tests.support.launches import ROOT

pytestmark = pytest.mark.launcher

PLUGIN = ("--plugin", str(ROOT / "tests" / "support" / "anomalous.py"))
PLAIN = (
    "run.task = @task.planted", "run.variants = @variants.none", "run.gistnet = None", "run.lensnet = None",
    "run.extra_losses = [@loss.spoiled]", "run.total_steps = 10", "logging.every = 3072",
    "validation.every = 0", "validation.windows = 1", "checkpoint.every = 4096", "checkpoint.keep = 9",
    "logging.tensorboard = False", "run.optimizer = @optimizer.adamw",
)  # fmt: skip
"""Ten steps of eight sequences. Sequence 41 is in step 6, with two ranks on rank 1 alone."""
BAD, STEP = "task.planted.marked = [41]", 6
GRADIENT = "loss.spoiled.gradient = True"
SPIKES = (
    "anomaly.spike_window = 8",
    "anomaly.spike_deviations = 1.5",
    "run.total_steps = 14",
    "logging.every = 1024",
    "optimizer.lr = 1e-3",
)
"""Sequences 64 to 71 are step 9."""


def train(launches, *settings, **options):
    return launches.run(*PLAIN, *settings, options=PLUGIN, **options)


def replay(run_dir, *options):
    # Edited runs need --trust, which the cache remembers.
    environment = {"MCFRAME_CACHE": str(run_dir.parent / "cache")}
    return CliRunner().invoke(app, ["replay", str(run_dir), "--trust", *options], env=environment)


def record_of(result):
    (record,) = records(result.run_dir)
    return record


@pytest.fixture(scope="module")
def skipped(launches):
    """A run on two ranks at ZeRO 0 that skips a step for a loss of NaN on rank 1."""
    return train(launches, BAD, "anomaly.on_nonfinite = 'skip'", ranks=2).succeeded()


# ---- skip ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stage", "ranks", "gradient"),
    [
        (1, 1, False), (3, 2, True),
        *(pytest.param(s, r, g, marks=pytest.mark.matrix) for s in range(4) for r in (1, 2) for g in (False, True)),
    ],
)  # fmt: skip
def test_a_skipped_step_is_the_same_at_every_stage(launches, skipped, stage, ranks, gradient):
    settings = (BAD, f"loss.spoiled.gradient = {gradient}", f"deepspeed.zero_stage = {stage}")
    found = train(launches, *settings, "anomaly.on_nonfinite = 'skip'", ranks=ranks).succeeded()
    for name in ("train/loss", "train/lr", "train/skipped_steps"):
        assert found.curve(name) == pytest.approx(skipped.curve(name), abs=2e-5 if name == "train/loss" else 0.0)
    assert f"step {STEP} skipped: the {'gradient is not finite' if gradient else 'loss is nan'}" in found.text


def test_a_skipped_step_counts_and_is_reported(skipped):
    assert skipped.curve("train/skipped_steps") == [0, 1, 1, 1]
    assert skipped.summary["status"] == "finished"
    assert all(math.isfinite(value) for value in skipped.curve("train/loss") + skipped.curve("train/grad_norm"))
    assert skipped.output.count("warning: step") == 1
    record = record_of(skipped)
    assert (record.facts.step, record.facts.reaction, record.facts.ranks) == (STEP, "skip", 2)
    assert sorted(file.name for file in record.path.iterdir()) == [
        "anomaly.json", "rank-0.safetensors", "rank-1.safetensors",
    ]  # fmt: skip
    ranks, _ = record.load()
    assert [any((batch.tokens[:, 1] == MARK).any() for batch in own["batches"]) for own in ranks] == [False, True]


def test_a_resumed_run_keeps_the_counts_and_the_curve(launches, skipped, tmp_path):
    settings, options = (BAD, "anomaly.on_nonfinite = 'skip'"), {"ranks": 2, "run_dir": tmp_path / "run"}
    train(launches, *settings, "run.total_steps = 8", **options).succeeded()
    again = train(launches, *settings, **options).succeeded()
    assert again.curve("train/skipped_steps")[-1] == 1


def test_too_many_skipped_steps_stop_the_run(launches):
    found = train(launches, BAD, "anomaly.on_nonfinite = 'skip'", "anomaly.limit = 0")
    assert found.code == 2
    assert "anomaly.limit = 0 within 1000 steps is exceeded" in found.text
    assert found.errors == 1


# ---- replay --------------------------------------------------------------------------------------
def test_replay_finds_the_module_and_the_same_losses(skipped):
    found = replay(skipped.run_dir)
    assert found.exit_code == 0, found.output
    assert "losses: equal bit for bit" in found.output
    assert "origin: losses.spoiled: its forward pass first returns NaN" in found.output
    assert "loss/next_token" in found.output
    assert found.output.endswith("\nreproduced\n")


def test_an_anomaly_that_does_not_come_back(skipped):
    found = replay(skipped.run_dir, "--plugin", str(ROOT / "tests" / "support" / "anomalous.py"), "--step", str(STEP))
    assert found.exit_code == 0
    file = skipped.run_dir / "config.gin"
    before = file.read_text("utf-8")
    file.write_text(before.replace("@loss.spoiled", ""), "utf-8")
    try:
        found = replay(skipped.run_dir)
    finally:
        file.write_text(before, "utf-8")
    assert found.exit_code == 1
    assert found.output.endswith("\nnot reproduced\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--step", "3"), "expected the step of a saved anomaly (6), got 3"), ((), "config.gin")],
)
def test_an_anomaly_that_does_not_exist(skipped, tmp_path, options, message):
    found = replay(skipped.run_dir if options else tmp_path, *options)
    assert found.exit_code == 2
    assert message in " ".join(found.output.replace("│", " ").split())


# ---- roll back -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def without(launches):
    """The curve of a run whose data has no garbage."""
    return train(launches, "task.planted.omitted = [64, 71]", *SPIKES).succeeded()


@pytest.mark.parametrize(
    "stage", [0, 2, pytest.param(1, marks=pytest.mark.matrix), pytest.param(3, marks=pytest.mark.matrix)]
)
def test_a_run_that_returns_to_a_checkpoint_is_one_without_the_batch(launches, without, stage):
    settings = ("task.planted.garbage = [64, 71]", *SPIKES, f"deepspeed.zero_stage = {stage}")
    found = train(launches, *settings, "anomaly.on_spike = 'roll_back'", ranks=1 + stage // 2).succeeded()
    same = {"abs": 0.0, "rel": 0.0} if stage == 0 else {"abs": 2e-5}
    assert found.curve("train/loss") == pytest.approx(without.curve("train/loss"), **same)
    assert found.curve("train/rollbacks")[-1] == 1
    assert "step 9 rolled back: the loss of" in found.text
    rows = [json.loads(line)["tokens"] for line in (found.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(rows)  # what was logged after the checkpoint is superseded
    assert replay(found.run_dir).exit_code == 0


def test_a_loss_that_is_not_finite_is_rolled_back(launches):
    found = train(launches, BAD, "anomaly.on_nonfinite = 'roll_back'").succeeded()
    assert found.curve("train/rollbacks") == [0, 1, 1, 1]
    assert all(math.isfinite(value) for value in found.curve("train/loss"))
    assert record_of(found).facts.weights == f"tokens-{4096:015d}"


# ---- stop ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.matrix)])
@pytest.mark.parametrize("clipping", ["0.0", "1.0"])
def test_a_gradient_in_the_step_before_a_checkpoint_is_found_first(launches, clipping, ranks):
    settings = (BAD, GRADIENT, "checkpoint.every = 6144", f"optimizer.gradient_clipping = {clipping}")
    found = train(launches, *settings, "logging.every = 0", ranks=ranks)
    assert found.code == 2
    assert found.errors == 1
    assert "the gradient is not finite after 6,144 tokens" in found.text
    assert "_Spoils" in found.text
    assert found.checkpoints == []
    assert record_of(found).facts.reaction == "stop"


def test_a_spike_can_stop_the_run(launches):
    found = train(launches, "task.planted.garbage = [64, 71]", *SPIKES, "anomaly.on_spike = 'stop'")
    assert found.code == 2
    assert "step 9: the loss of" in found.text
