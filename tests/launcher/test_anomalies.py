"""Losses and gradients that are not finite, and spikes: skipped, rolled back or stopped for, and run again."""

import itertools
import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.testing.host_sync import no_host_sync
from mcframe.training.anomaly_record import records
from tests.support.anomalous import MARK
from tests.support.launches import ROOT, SMOKE
from tests.support.layouts import everything, in_ranks

pytestmark = pytest.mark.launcher

PLUGIN = ("--plugin", str(ROOT / "tests" / "support" / "anomalous.py"))
STEP, STEPS = 6, 10
PLAIN = (
    "run.task = @task.planted", "run.variants = @variants.none", "run.gistnet = None", "run.lensnet = None",
    "run.extra_losses = [@loss.spoiled]", f"run.total_steps = {STEPS}", "logging.every = 2048",
    "validation.every = 0", "validation.windows = 1", "checkpoint.every = 3072", "checkpoint.keep = 9",
    "logging.tensorboard = False", "logging.wandb = 'disabled'", "run.optimizer = @optimizer.adamw",
    # A skipped step takes its learning rate with it: with other schedules the rates of later steps would differ.
    "schedule.trapezoid.warmup_ratio = 0.0", "schedule.trapezoid.warmdown_ratio = 0.0",
    "anomaly.spike_window = 4", "anomaly.spike_deviations = 2.0",
)  # fmt: skip
"""Ten steps of eight sequences. Step 6 has 40 to 47; with two ranks, 41 is on rank 1 alone."""
BAD, GARBAGE = "task.planted.marked = [41]", "task.planted.garbage = [40, 47]"
GRADIENT, NINE_STEPS = "loss.spoiled.gradient = True", "run.total_steps = 9"
KINDS = {
    "without": ("task.planted.omitted = [40, 47]", NINE_STEPS),
    "loss skipped": (BAD, "anomaly.on_nonfinite = 'skip'"),
    "gradient skipped": (BAD, GRADIENT, "anomaly.on_nonfinite = 'skip'"),
    "spike skipped": (GARBAGE, "anomaly.on_spike = 'skip'"),
    "loss rolled back": (BAD, "anomaly.on_nonfinite = 'roll_back'", NINE_STEPS),
    "spike rolled back": (GARBAGE, "anomaly.on_spike = 'roll_back'", NINE_STEPS),
}
"""A skipped step counts as one of ten; a run that is rolled back does nine others."""


def train_all(folder, runs, more=()):
    """Train runs (kind, ZeRO stage) one after the other in this group of processes; returns their exit codes."""
    from mcframe.cli.run_options import arguments
    from mcframe.cli.train import train_in_group
    from mcframe.training.anomaly_response import AnomalyResponse

    for name in ("begin_step", "add", "end_step"):  # in a process of this test alone
        setattr(AnomalyResponse, name, without_reading(getattr(AnomalyResponse, name)))
    codes = []
    for kind, stage in runs:
        options = ["--gin", str(SMOKE), "--run-dir", str(directory(folder, kind, stage)), *PLUGIN]
        for setting in (*PLAIN, *KINDS[kind], *more, f"deepspeed.zero_stage = {stage}"):
            options += ["--set", setting]
        codes.append(train_in_group(arguments().parse_args(options)))
    return codes


def without_reading(method):
    """Return a method that fails if it waits for the device, but in the step in which optimizers create their state."""

    def call(self, *arguments):
        with no_host_sync() if self._trainer.state.step else nullcontext():
            return method(self, *arguments)

    return call


def directory(folder, kind, stage=0):
    return Path(folder, f"{kind}, stage {stage}")


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text("utf-8"))


def rows(run_dir, name):
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row[name] for row in lines if name in row]


def final_state(run_dir):
    """Return weights and optimizer state at the end of a run, and the steps that the schedule counts."""
    found = everything(max((run_dir / "checkpoints").glob("tokens-*")))
    assert found["scheduler"]["last_epoch"] == found.pop("counters")["global_steps"]
    return found, found.pop("scheduler")["last_epoch"]


def equal(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def replay(run_dir, *options):
    return CliRunner().invoke(app, ["replay", str(run_dir), *options])


def record_of(run_dir):
    (record,) = records(run_dir)
    return record


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """Runs on one rank, two of them at ZeRO 0 and one at ZeRO 3."""
    folder, runs = tmp_path_factory.mktemp("one"), [("without", 0), ("spike rolled back", 0), ("gradient skipped", 3)]
    assert in_ranks(train_all, 1, folder, runs) == [[0, 0, 0]]
    return folder


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
    """A run on two ranks that skips a step for a loss of NaN on rank 1."""
    folder = tmp_path_factory.mktemp("two")
    assert in_ranks(train_all, 2, folder, [("loss skipped", 0)]) == [[0], [0]]
    return directory(folder, "loss skipped")


# ---- skip and roll back --------------------------------------------------------------------------
def test_a_bad_batch_leaves_no_trace(one_rank, skipped):
    expected, steps = final_state(directory(one_rank, "without"))
    others = {
        directory(one_rank, "spike rolled back"): 0.0,
        directory(one_rank, "gradient skipped", 3): 2e-5,
        skipped: 2e-5,
    }  # two ranks, and other stages, sum in another order
    for run_dir, tolerance in others.items():
        found, done = final_state(run_dir)
        assert done == steps + ("skipped" in str(run_dir))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=f"{run_dir}: {name}")


@pytest.mark.matrix
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stages", [(0, 1), (2, 3)])
def test_the_same_bit_for_bit_at_every_stage(tmp_path, optimizer, ranks, stages):
    runs = list(itertools.product(KINDS, stages))
    codes = in_ranks(train_all, ranks, tmp_path, runs, [f"run.optimizer = @optimizer.{optimizer}"])
    assert codes == [[0] * len(runs)] * ranks
    for kind, stage in runs:
        expected, steps = final_state(directory(tmp_path, "without", stage))
        found, done = final_state(directory(tmp_path, kind, stage))
        assert done == steps + ("skipped" in kind)
        assert found.keys() == expected.keys()
        assert [name for name in found if not equal(found[name], expected[name])] == [], (kind, stage)


BF16, OFFLOAD = "deepspeed.precision = 'bf16'", "deepspeed.offload_optimizer = True"


@pytest.mark.matrix
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("more", [(BF16,), (OFFLOAD,), (BF16, OFFLOAD)], ids=["bf16", "offload", "both"])
def test_a_skipped_step_leaves_no_trace_in_bf16_and_with_offload(tmp_path, optimizer, ranks, more):
    """Weights, master weights and states, bit for bit; at ZeRO 0 DeepSpeed has neither, and a start is refused."""
    kinds = ["without", *(kind for kind in KINDS if "skipped" in kind)]
    runs = list(itertools.product(kinds, (1, 2, 3)))
    codes = in_ranks(train_all, ranks, tmp_path, runs, [f"run.optimizer = @optimizer.{optimizer}", *more])
    assert codes == [[0] * len(runs)] * ranks
    for kind, stage in runs:
        expected, steps = final_state(directory(tmp_path, "without", stage))
        found, done = final_state(directory(tmp_path, kind, stage))
        assert done == steps + ("skipped" in kind)
        assert found.keys() == expected.keys()
        assert [name for name in found if not equal(found[name], expected[name])] == [], (kind, stage)
        assert rows(directory(tmp_path, kind, stage), "train/skipped_steps")[-1:] == [1] * ("skipped" in kind)


@pytest.mark.parametrize(("setting", "name"), [(BF16, "precision"), (OFFLOAD, "offload_optimizer")])
def test_what_zero_0_cannot_do_is_refused_at_the_start(launches, setting, name):
    found = launches.run(*PLAIN, setting, "anomaly.on_nonfinite = 'skip'", options=PLUGIN)
    assert (found.code, found.errors) == (2, 1)
    assert f"deepspeed.{name}" in found.text
    assert "deepspeed.zero_stage" in found.text
    assert not (found.run_dir / "config.gin").exists()


def test_a_skipped_step_counts_and_is_reported(skipped):
    assert rows(skipped, "train/skipped_steps") == [0, 0, 1, 1, 1]
    assert all(math.isfinite(value) for name in ("train/loss", "train/grad_norm") for value in rows(skipped, name))
    (warning,) = summary(skipped)["warnings"]
    assert warning == f"step {STEP} skipped: the loss is nan. mcframe replay '{skipped}' repeats it."
    record = record_of(skipped)
    assert (record.facts.step, record.facts.reaction, record.facts.ranks) == (STEP, "skip", 2)
    assert sorted(file.name for file in record.path.iterdir()) == [
        "anomaly.json", "rank-0.safetensors", "rank-1.safetensors",
    ]  # fmt: skip
    ranks, _ = record.load()
    assert [any((batch.tokens[:, 1] == MARK).any() for batch in own["batches"]) for own in ranks] == [False, True]


def test_what_was_logged_after_the_checkpoint_is_superseded(one_rank):
    run_dir = directory(one_rank, "spike rolled back")
    tokens = rows(run_dir, "tokens")
    assert tokens == sorted(tokens)
    assert rows(run_dir, "train/rollbacks") == [0, 1, 1, 1, 1]
    assert rows(run_dir, "train/loss") == rows(directory(one_rank, "without"), "train/loss")
    assert f"step {STEP} rolled back: the loss of" in summary(run_dir)["warnings"][0]
    assert record_of(run_dir).facts.weights == f"tokens-{3072:015d}"
    assert replay(run_dir).exit_code == 0


@pytest.mark.matrix
def test_a_resumed_run_keeps_the_counts(launches, tmp_path):
    settings, run_dir = KINDS["loss skipped"], tmp_path / "run"
    for steps in (8, 10):
        stop = (*settings, f"run.total_steps = {steps}")
        launches.run(*PLAIN, *stop, options=PLUGIN, run_dir=run_dir).succeeded()
    assert rows(run_dir, "train/skipped_steps")[-1] == 1


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((*KINDS["loss skipped"], "anomaly.limit = 0"), "anomaly.limit = 0 within 1000 steps is exceeded"),
        (("task.planted.marked = [1]", "anomaly.on_nonfinite = 'roll_back'"), "The run has no checkpoint yet"),
        ((GARBAGE, "anomaly.on_spike = 'stop'"), f"step {STEP}: the loss of"),
    ],
)
def test_a_run_that_stops(launches, settings, message):
    found = launches.run(*PLAIN, *settings, options=PLUGIN)
    assert (found.code, found.errors) == (2, 1)
    assert message in found.text


@pytest.mark.parametrize(
    ("ranks", "clipping"),
    [(1, "0.0"), *(pytest.param(*each, marks=pytest.mark.matrix) for each in ((1, "1.0"), (2, "0.0"), (2, "1.0")))],
)
def test_a_gradient_in_the_step_before_a_checkpoint_is_found_first(launches, clipping, ranks):
    settings = (BAD, GRADIENT, "checkpoint.every = 6144", f"optimizer.gradient_clipping = {clipping}")
    found = launches.run(*PLAIN, *settings, "logging.every = 0", options=PLUGIN, ranks=ranks)
    assert (found.code, found.errors) == (2, 1)
    assert "the gradient is not finite after 6,144 tokens" in found.text
    assert "_Spoils" in found.text
    assert found.checkpoints == []
    assert record_of(found.run_dir).facts.reaction == "stop"


# ---- replay --------------------------------------------------------------------------------------
def test_replay_finds_the_module_and_the_same_losses(skipped):
    found = replay(skipped)
    assert found.exit_code == 0, found.output
    assert "losses: equal bit for bit" in found.output
    assert "origin: losses.spoiled: its forward pass first returns NaN" in found.output
    assert "loss/next_token" in found.output
    assert found.output.endswith("\nreproduced\n")


@pytest.mark.matrix
def test_an_anomaly_that_does_not_come_back(skipped):
    file = skipped / "config.gin"
    before = file.read_text("utf-8")
    file.write_text(before.replace("@loss.spoiled", ""), "utf-8")
    try:
        found = replay(skipped, "--trust")
    finally:
        file.write_text(before, "utf-8")
    assert found.exit_code == 1
    assert found.output.endswith("\nnot reproduced\n")


def break_file(record):
    file = record.path / "rank-1.safetensors"
    file.write_bytes(file.read_bytes()[:99])


def break_facts(record):
    facts = {**json.loads((record.path / "anomaly.json").read_text("utf-8")), "weights": "../../../secret"}
    (record.path / "anomaly.json").write_text(json.dumps(facts), "utf-8")


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (("--step", "3"), None, "expected the step of a saved anomaly (6), got 3"),
        ((), break_file, "step-6 cannot be read"),
        ((), break_facts, "anomaly.json cannot be read"),
    ],
)
def test_an_anomaly_that_cannot_be_read(skipped, options, change, message):
    record = record_of(skipped)
    before = {file: file.read_bytes() for file in record.path.iterdir()}
    if change is not None:
        change(record)
    found = replay(skipped, *options)
    for file, content in before.items():
        file.write_bytes(content)
    assert found.exit_code == 2
    assert message in " ".join(found.output.replace("│", " ").split())
