"""The smoke preset on one GPU through the launcher, at every ZeRO stage."""

import pytest


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_smoke_trains_and_learns(launches, stage):
    result = launches.run(
        "run.total_tokens = 6144", "logging.every = 1024", "validation.every = 0", f"deepspeed.zero_stage = {stage}",
        launcher=True,
    ).succeeded()  # fmt: skip
    assert "1 on cuda" in result.text
    losses = result.curve("train/loss_lod0")
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.5
    assert result.checkpoints == [6144]
