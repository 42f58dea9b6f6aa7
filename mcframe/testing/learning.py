"""Requirements of real training steps."""

from __future__ import annotations

import torch

from mcframe.context.focus_ops import is_valid, lengths
from mcframe.testing.assertions import expect
from mcframe.testing.kinds import MODEL_PARTS, NETWORKS
from mcframe.testing.networks import PARAMETERS
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import requirement
from mcframe.testing.training_step import TREE, refocused, step_with, train


@requirement(
    "M6", "It works in real training steps: losses are finite, and refocusing keeps the budget", *MODEL_PARTS,
    after=("M1", "M3", "G1", "L1", "A1", "A6", "V1"),
)  # fmt: skip
def m6_step(plugin: PluginUnderTest) -> None:
    """With small reference parts around it."""
    step = step_with(plugin)
    for number, loss in train(step, 2):
        expect(bool(loss.isfinite()), f"the loss of step {number} is not finite")
    if plugin.kind == "allocator":
        budget = TREE.window * 3 // 4
        focus = refocused(step.model, plugin.build(TREE), budget)
        expect(bool(is_valid(focus, TREE).all()), "refocusing ends with an invalid focus")
        expect(bool((lengths(focus, TREE) <= budget).all()), "refocusing ends above the budget")


@requirement(
    "N5", "Within four real training steps every parameter changes", *NETWORKS, needs=PARAMETERS, after=("N3", "M6")
)
def n5_learns(plugin: PluginUnderTest) -> None:
    """From its own initialisation; a parameter after a zero may need a step or two."""
    step = step_with(plugin)
    part = getattr(step.model, plugin.kind)
    before = {name: parameter.detach().clone() for name, parameter in part.named_parameters()}
    reached: set[str] = set()
    for _ in train(step, 4):
        reached |= {name for name, parameter in part.named_parameters() if bool(parameter.grad.count_nonzero())}
    expect(reached == before.keys(), f"the gradient is zero in {', '.join(sorted(before.keys() - reached))}")
    still = [name for name, parameter in part.named_parameters() if torch.equal(parameter, before[name])]
    expect(not still, f"{', '.join(still)} did not change")
