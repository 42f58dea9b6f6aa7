"""A skipped step: weights and optimizer are bit for bit those of a run without its batch, at every ZeRO stage."""

import itertools
from pathlib import Path

import pytest
import torch

from tests.launcher.test_anomalies import BAD, PLAIN, PLUGIN
from tests.support.launches import SMOKE
from tests.support.layouts import everything, in_ranks

pytestmark = pytest.mark.launcher

CONSTANT = ("schedule.trapezoid.warmup_ratio = 0.0", "schedule.trapezoid.warmdown_ratio = 0.0")
"""A skipped step takes its learning rate with it, so that the rates of later steps would differ."""
WITHOUT = ("task.planted.omitted = [40, 47]", "run.total_steps = 9")
"""The data without step 6."""


def train_all(folder, runs):
    """Train runs one after the other in this group of processes; returns their exit codes."""
    from mcframe.cli.run_options import arguments
    from mcframe.cli.train import train_in_group

    codes = []
    for name, settings in runs.items():
        options = ["--gin", str(SMOKE), "--run-dir", str(Path(folder, name)), *PLUGIN]
        for setting in (*PLAIN, *CONSTANT, *settings):
            options += ["--set", setting]
        codes.append(train_in_group(arguments().parse_args(options)))
    return codes


def final_state(folder, name):
    """Return weights and optimizer state at the end of a run, and the counters and the schedule."""
    (folder,) = sorted(Path(folder, name, "checkpoints").glob("tokens-*"))[-1:]
    found = everything(folder)
    return found, {name: found.pop(name) for name in ("scheduler", "counters")}


@pytest.mark.parametrize(
    ("ranks", "stages", "optimizer", "gradients"),
    [
        (2, (0, 3), "adamw", (True,)),
        *(
            pytest.param(ranks, range(4), optimizer, (False, True), marks=pytest.mark.matrix)
            for ranks, optimizer in itertools.product((1, 2), ("adamw", "muon"))
        ),
    ],
)
def test_a_skipped_step_leaves_no_trace(tmp_path, ranks, stages, optimizer, gradients):
    """Sequence 41 is in step 6, with two ranks on rank 1 alone: its loss, or only a gradient of it, is NaN."""
    runs, bad = {}, [BAD, "anomaly.on_nonfinite = 'skip'"]
    for stage in stages:
        shared = [f"deepspeed.zero_stage = {stage}", f"run.optimizer = @optimizer.{optimizer}"]
        runs[f"without {stage}"] = [*shared, *WITHOUT]
        for gradient in gradients:
            runs[f"{gradient} {stage}"] = [*shared, *bad, f"loss.spoiled.gradient = {gradient}"]
    assert in_ranks(train_all, ranks, tmp_path, runs) == [[0] * len(runs)] * ranks
    for stage, gradient in itertools.product(stages, gradients):
        expected, before = final_state(tmp_path, f"without {stage}")
        found, after = final_state(tmp_path, f"{gradient} {stage}")
        assert found.keys() == expected.keys()
        assert [name for name in found if not equal(found[name], expected[name])] == [], (stage, gradient)
        assert after["scheduler"]["last_epoch"] == before["scheduler"]["last_epoch"] + 1 == 10
        assert after["counters"]["global_steps"] == before["counters"]["global_steps"] + 1 == 10


def equal(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
