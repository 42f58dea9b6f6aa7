"""Skipped steps: undone bit for bit for any optimizer, without waiting for the device; spikes; recent steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mcframe.metrics.accumulator import Accumulator
from mcframe.testing.host_sync import no_host_sync
from mcframe.training.anomaly_response import masked
from mcframe.training.recent_steps import _MOST_STEPS, LossWindow, RecentSteps
from mcframe.training.step_undo import StepUndo
from tests.property.metrics.test_accumulator import micro_batch


class CountsInPython(torch.optim.Optimizer):
    """Keeps its step as a number, in the state and in the group, as some optimizers do."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "step": 0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] += 1
            for each in group["params"]:
                state = self.state[each]
                state["n"] = state.get("n", 0) + 1
                each -= each.grad * group["lr"] / state["n"]


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "adamw, no foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),  # a state that starts from 1
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "python": CountsInPython,
}


def train(build, gradients, skipped=()):
    """Train on these gradients; undo the steps whose numbers are in `skipped`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = build(net.parameters())
    engine = SimpleNamespace(step=net, optimizer=optimizer, wrapped=SimpleNamespace(optimizer=optimizer))
    undo, before = StepUndo(engine, torch.device("cpu")), []
    for number, gradient in enumerate(gradients):
        before.append({name: value.clone() for name, value in net.named_parameters()})
        undo.keep()
        for each in net.parameters():
            each.grad = torch.full_like(each, gradient)
        net[1].running_mean += gradient  # a buffer, which the forward pass changes
        optimizer.step()
        undo.undo_unless(torch.tensor(number not in skipped))
    return net.state_dict(), undo, before


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf, 3.0], [1e20]])
@pytest.mark.parametrize("at", [0, 2])
def test_a_run_with_skipped_steps_equals_one_without_them(build, bad, at):
    sound = [0.3, -0.2, 0.5, 0.1]
    expected, _, _ = train(build, sound)
    skipped = range(at, at + len(bad))
    found, undo, before = train(build, [*sound[:at], *bad, *sound[at:]], skipped)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for name, value in before[at].items():  # of the first skipped step, for a replay
        assert torch.equal(undo.before[f"module/{name}"], value)


def test_undoing_does_not_wait_for_the_device():
    net = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False, capturable=False)
    engine = SimpleNamespace(step=net, optimizer=optimizer, wrapped=SimpleNamespace(optimizer=optimizer))
    undo, window = StepUndo(engine, torch.device("cpu")), LossWindow(8)
    for each in net.parameters():
        each.grad = torch.full_like(each, torch.nan)
    optimizer.step()
    loss = torch.tensor(2.0, dtype=torch.float64)
    with no_host_sync():
        undo.keep()
        good = ~window.compare(loss, 8.0, 0.5)[2]
        window.put(3, loss, good)
        undo.undo_unless(good)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 20) | st.just(float("nan")), min_size=1, max_size=30), st.integers(4, 8))
def test_spikes_are_those_of_a_plain_loop(losses, size):
    window, kept = LossWindow(size), [float("nan")] * size
    for step, loss in enumerate(losses):
        value = torch.tensor(loss, dtype=torch.float64)
        held = np.array([each for each in kept if each == each])
        expected = (
            len(held) >= size // 2 and loss == loss and loss - held.mean() >= max(2.0 * held.std(), 0.5)
            if len(held)
            else False
        )
        spike = window.compare(value, 2.0, 0.5)[2]
        if len(held) == 0 or abs(loss - held.mean() - max(2.0 * held.std(), 0.5)) > 1e-9:
            assert bool(spike) == bool(expected)
        good = value.isfinite() & ~spike
        window.put(step, value, good)
        kept[step % size] = loss if good else float("nan")
    again = LossWindow(size)
    again.restore(window.values)
    assert torch.equal(again.values.nan_to_num(-1), window.values.nan_to_num(-1))


def test_metrics_of_a_skipped_step_count_for_nothing():
    accumulator, expected = Accumulator(), Accumulator()
    for seed, good in enumerate((True, False, True)):
        accumulator.add(masked(micro_batch(seed), torch.tensor(good)))
        if good:
            expected.add(micro_batch(seed))
    found, sound = accumulator.read(), expected.read()
    undefined = {name for name in found.metrics if name.endswith("_undefined")}
    assert {k: v for k, v in found.metrics.items() if k not in undefined} == pytest.approx(
        {k: v for k, v in sound.metrics.items() if k not in undefined}, nan_ok=True
    )
    assert all(np.array_equal(found.counts[name], value) for name, value in sound.counts.items())
    assert all(np.array_equal(found.points[name], value) for name, value in sound.points.items())


def test_recent_steps_are_those_since_the_last_look_and_the_one_before():
    recent = RecentSteps()
    for number in range(4):
        recent.begin_step(number)
        for part in range(2):
            recent.add((number, part), torch.tensor(1.0))
        recent.last.row = torch.zeros(5)
    assert [each.step for each in recent.unread()] == [0, 1, 2, 3]
    assert recent.suspects(recent.unread()[2]) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    recent.restart()
    assert recent.unread() == []
    recent.begin_step(4)
    recent.add((4, 0), torch.tensor(1.0))
    recent.last.row = torch.zeros(5)
    assert recent.suspects(recent.unread()[0]) == [(3, 0), (3, 1), (4, 0)]
    for number in range(_MOST_STEPS + 9):
        recent.begin_step(number)
        recent.add((number, 0), torch.tensor(1.0))
    assert sum(bool(each.batches) for each in recent._steps) == _MOST_STEPS
