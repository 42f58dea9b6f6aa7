"""A compiled run equals the eager one, and resumes equal to itself: real runs of gin/smoke.gin, traced alone."""

import json
import shutil

import pytest

from tests.support.launches import FOUR_STEPS, STEP

pytestmark = [pytest.mark.launcher, pytest.mark.matrix]

EAGER = (*FOUR_STEPS, "context.length_steps = 2", "deepspeed.zero_stage = 2")
COMPILED = (*EAGER, "run.compile = 'eager'")


def test_a_compiled_run_equals_the_eager_one_and_resumes_equal_to_itself(launches, tmp_path):
    eager, compiled = launches.run(*EAGER).succeeded(), launches.run(*COMPILED).succeeded()
    for name in ("train/loss", "train/loss_lod0", "mc/lens_loss", "train/grad_norm"):
        assert len(eager.curve(name)) == 4
        assert compiled.curve(name) == pytest.approx(eager.curve(name), rel=1e-6)
    assert "compiles the step for variants of 113, 95 entries" in compiled.text
    assert compiled.text.count("compiled for variants of") == 2
    lines = [json.loads(line) for line in (compiled.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
    last = [line for line in lines if "train/loss" in line][-1]
    assert last["train/compiled_graphs"] == 2
    assert 0 < last["train/compile_s"] < 1000
    assert "train/forward_ms" in last
    assert "mc/build_ms" not in last

    copy = tmp_path / "copy"
    shutil.copytree(compiled.run_dir, copy)
    start = copy / "checkpoints" / f"tokens-{2 * STEP:015}"
    resumed = launches.run(*COMPILED, run_dir=copy, options=("--resume", str(start))).succeeded()
    assert resumed.metrics == compiled.metrics
    assert resumed.text.count("compiled for variants of") == 1
