"""Timers and the accumulator on a GPU."""

import pytest
import torch

from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.accumulator import Accumulator
from mcframe.metrics.timers import STEP, Timers


def step_metrics(device):
    """Make metrics with a mean, a root of a sum, samples and counts."""
    return StepMetrics(
        means={"train/loss_lod0": torch.tensor([8.5, 17.0], device=device)},
        roots={"train/update_ratio/gpt": torch.tensor([0.5, 2.0], dtype=torch.float64, device=device)},
        samples={"mc/adv_delta": torch.tensor([0.5, float("nan"), 1.5], device=device)},
        counts={"mc/lens_score": torch.arange(80, device=device).view(2, 40)},
    )


def test_add_does_not_wait_for_the_gpu():
    accumulator, reference = Accumulator("cuda"), Accumulator()
    batches = [step_metrics("cuda") for _ in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for metrics in batches:
            accumulator.add(metrics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in batches:
        reference.add(step_metrics("cpu"))
    found, expected = accumulator.read(), reference.read()
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-12)
    assert found.counts.keys() == expected.counts.keys()
    assert all((found.counts[name] == expected.counts[name]).all() for name in expected.counts)


def test_events_measure_the_work_of_the_gpu():
    device = torch.device("cuda")
    timers, matrix = Timers(device), torch.randn(4096, 4096, device=device)
    accumulator = Accumulator(device)
    for _ in range(2):
        with timers.step(), timers.phase("base"):
            for _ in range(50):
                matrix = (matrix @ matrix).clamp(-1, 1)
    accumulator.add(timers.collect())
    metrics = accumulator.read().metrics
    assert metrics["train/base_ms"] > 1.0
    assert metrics["train/base_ms"] == pytest.approx(metrics[STEP], rel=0.05)
