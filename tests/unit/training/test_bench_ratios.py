"""Figures of `mcframe bench`, from the times of steps and floors."""

from dataclasses import dataclass

import torch

from mcframe.metrics.timers import STEP
from mcframe.training.bench import _medians

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Steps:
    """The figures of a step that ratios need, next to its times."""

    flops: float
    tokens: int = 100
    device: torch.device = CPU


def test_a_floor_is_compared_with_the_step_without_its_optimizer():
    step, baseline = Steps(30.0), Steps(10.0)
    times = {
        step: [{STEP: 400.0, "train/optimizer_ms": 100.0}, {STEP: 800.0, "train/optimizer_ms": 300.0}],
        baseline: [{STEP: 100.0, "train/optimizer_ms": 20.0}, {STEP: 200.0, "train/optimizer_ms": 40.0}],
    }
    alone = {step: [150.0, 100.0], baseline: [80.0, 40.0]}
    found = _medians(step, baseline, times, alone).figures
    assert found["step/floor"] == (300 / 150 + 500 / 100) / 2
    assert found["baseline/floor"] == (80 / 80 + 160 / 40) / 2
    assert found["step/baseline"] == 4.0
    assert found["flops/baseline"] == 3.0
    assert (found["step_ms"], found["floor_ms"]) == (600.0, 125.0)
