"""Clauses about real training steps."""

from __future__ import annotations

import torch

from mcframe.context.focus_ops import is_valid, lengths
from mcframe.testing.plugin_under_test import NETWORKS, PARTS, PluginUnderTest
from mcframe.testing.requirements import expect, requirement
from mcframe.testing.training_step import GEOMETRY, build_step, some_tokens, train


@requirement(
    "M9",
    "It works in real training steps: the loss is finite, and refocusing keeps the budget",
    *PARTS,
    after=("M1", "M5", "G1", "L1", "A3", "A4", "A9", "V4"),
)
def m9_step(plugin: PluginUnderTest) -> None:
    """A `TrainStep` whose other parts are small references."""
    step = build_step(plugin)
    for number, loss in train(step, 2):
        expect(bool(loss.isfinite()), f"the loss of step {number} is not finite")
    if plugin.kind != "allocator":
        return
    budget = GEOMETRY.window * 3 // 4
    with torch.no_grad():
        focus, _ = step.model.refocus(some_tokens(0)[:, :-1], plugin.build(GEOMETRY), budget, torch.arange(3))
    expect(bool(is_valid(focus, GEOMETRY).all()), "refocusing ends with a focus that is not valid")
    expect(bool((lengths(focus, GEOMETRY) <= budget).all()), "refocusing ends beyond the budget")


@requirement(
    "N7", "Within four real training steps every parameter moves", *NETWORKS, needs="parameters", after=("N5", "M9")
)
def n7_learns(plugin: PluginUnderTest) -> None:
    """From its own initialisation; what starts behind a zero may need a step or two."""
    step = build_step(plugin)
    part = getattr(step.model, plugin.kind)
    before = {name: parameter.detach().clone() for name, parameter in part.named_parameters()}
    reached: set[str] = set()
    for _ in train(step, 4):
        reached |= {name for name, parameter in part.named_parameters() if bool(parameter.grad.count_nonzero())}
    expect(reached == before.keys(), f"the gradient is zero in {', '.join(sorted(before.keys() - reached))}")
    still = [name for name, parameter in part.named_parameters() if torch.equal(parameter, before[name])]
    expect(not still, f"{', '.join(still)} did not move")
