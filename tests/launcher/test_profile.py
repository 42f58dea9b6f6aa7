"""`--profile`: the steps that are recorded on every rank, and a run that resumes without it."""

import gzip
import json

import pytest

from tests.support.launches import EVERY_STEP, STEP

pytestmark = pytest.mark.launcher


def test_the_steps_before_an_early_end_are_recorded_on_every_rank(launches):
    # Of the smallest model: a trace has a line for every operation.
    small = (*EVERY_STEP, "gpt.depth = 1", "run.lensnet = None", "run.variants = @variants.none")
    settings = (*small, f"run.total_tokens = {5 * STEP}")
    profiled = launches.run(*settings, ranks=2, options=["--profile"]).succeeded()
    assert "Operations that take longest" in profiled.text
    assert "aten::mm" in profiled.text
    assert len(profiled.curve("train/loss")) == 5
    for rank in range(2):
        with gzip.open(profiled.run_dir / "profile" / f"trace-rank{rank}.json.gz", "rt") as file:
            events = json.load(file)["traceEvents"]
        phases = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        assert [phases.count(name) for name in ("base", "backward")] == [2, 2]  # of the three, the run has two
    longer = launches.run(*small, f"run.total_tokens = {6 * STEP}", run_dir=profiled.run_dir)
    assert longer.succeeded().checkpoints[-1] == 6 * STEP
    assert "Operations that take longest" not in longer.text
