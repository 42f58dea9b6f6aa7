"""Requirements of losses. Rows, random states and the device are the concern of requirements M1 to M3."""

from __future__ import annotations

from typing import get_args

import torch

from mcframe.hookspecs import Need
from mcframe.testing.assertions import expect
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import requirement
from mcframe.testing.training_step import (
    ROWS,
    build_step,
    loss_term,
    some_tokens,
    step_seeds,
    step_with,
    train,
    without_gradient,
)

NEEDS = get_args(Need)


@requirement(
    "O1", "It declares name, weight and needs, and returns one finite figure a sequence", "loss", after=("P6",)
)
def o1_term(plugin: PluginUnderTest) -> None:
    """In a real training step that has everything a loss may need."""
    part = plugin.specimen
    expect(isinstance(part.name, str) and part.name.isidentifier(), f"name is {part.name!r}, expected an identifier")
    expect(isinstance(part.weight, (int, float)), f"weight is {part.weight!r}, expected a number")
    known = isinstance(part.needs, tuple) and set(part.needs) <= set(NEEDS)
    expect(known, f"needs is {part.needs!r}, expected a tuple of some of {', '.join(NEEDS)}")
    step = step_with(plugin)
    values = loss_term(step, some_tokens(0), step_seeds(step)).loss
    expect(list(values.shape) == [ROWS], f"{ROWS} sequences: expected a loss [{ROWS}], got {list(values.shape)}")
    expect(bool(values.isfinite().all()), f"the loss is {values.tolist()}")


@requirement("O2", "It trains something, and every parameter of its own takes part", "loss", after=("O1",))
def o2_gradient(plugin: PluginUnderTest) -> None:
    """At ZeRO 3 a parameter without a gradient would be updated with an old one."""
    part = plugin.build()
    step = build_step("loss", part, plugin.width)
    values = loss_term(step, some_tokens(0), step_seeds(step)).loss
    expect(values.requires_grad, "the loss depends on no parameter")
    torch.autograd.backward(values.mean())
    unused = without_gradient(part)
    expect(not unused, f"no gradient reaches {', '.join(unused)}")
    for number, loss in train(step_with(plugin), 1):
        expect(bool(loss.isfinite()), f"the loss of step {number} is not finite")
