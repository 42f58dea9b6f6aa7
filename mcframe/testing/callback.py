"""Requirements of callbacks: their hooks accept what a run passes, and change nothing that they should not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mcframe.hookspecs import Callback, CallbackRun, CallbackStep
from mcframe.testing.assertions import expect
from mcframe.testing.host_sync import random_state
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import requirement


@requirement(
    "C1", "Its hooks take what a run passes, and return scalar tensors by name or None", "callback", after=("P6",)
)
def c1_hooks(plugin: PluginUnderTest) -> None:
    """A step with gradients, logging intervals with and without values, and no change of a global random state."""
    callback, before = _started(plugin), random_state()
    for step in range(2):
        for values in _step(callback, step):
            scalars = isinstance(values, Mapping) and all(
                isinstance(each, Tensor) and each.dim() == 0 for each in values.values()
            )
            expect(values is None or scalars, f"expected scalar tensors by name or None, got {values!r}")
    callback.on_metrics(2048, {"train/loss": 2.5, "val/loss": float("nan")})
    callback.on_metrics(2048, {})
    expect(random_state() == before, "expected an unchanged global random state, got another")


@requirement("C2", "Its state can be stored and restored", "callback", after=("C1",))
def c2_state(plugin: PluginUnderTest) -> None:
    """A callback that loads the state of another one returns an equal state."""
    callback = _started(plugin)
    for step in range(2):
        _step(callback, step)
    callback.on_metrics(2048, {"train/loss": 2.5, "val/loss": 1.5})
    state = callback.state_dict()
    other: Callback = plugin.build()
    other.load_state_dict(state)
    found = other.state_dict()
    expect(repr(found) == repr(state), f"expected {state!r} after restoring it, got {found!r}")


def _started(plugin: PluginUnderTest) -> Callback:
    callback: Callback = plugin.build()
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    callback.on_start(CallbackRun(model, {}, {"run.seed": 0}, Path(), 0, 1, 4096))
    return callback


def _step(callback: Callback, step: int) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor] | None]:
    view = CallbackStep(
        step, 1024 * (step + 1), {"train/loss": torch.tensor(2.5), "loss/next_token": torch.tensor(2.0)}
    )
    return callback.after_backward(view), callback.after_step(view)
