"""Requirements of optimizers and schedules."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import torch
from torch import nn

from mcframe.hookspecs import Schedule, group_parameters
from mcframe.testing.assertions import expect
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import requirement

LR = 0.01


@requirement(
    "U1", "Every trained parameter is in exactly one group of what it builds, and changes in a step", "optimizer",
    after=("P6",),
)  # fmt: skip
def u1_groups(plugin: PluginUnderTest) -> None:
    """For an embedding, a matrix and vectors. Values stay finite."""
    model, optimizer = _built(plugin)
    grouped = [id(each) for group in optimizer.param_groups for each in group["params"]]
    expect(sorted(grouped) == sorted(map(id, model.parameters())), "expected every parameter in one group")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _step(model, optimizer)
    for name, parameter in model.named_parameters():
        expect(not torch.equal(parameter, before[name]), f"{name} did not change")
        expect(bool(parameter.isfinite().all()), f"{name} is not finite after a step")


@requirement(
    "U2", "After restoring its state, a step equals that of an uninterrupted optimizer", "optimizer", after=("U1",)
)
def u2_state(plugin: PluginUnderTest) -> None:
    """After two steps, by `state_dict` and `load_state_dict` of what it builds."""
    model, optimizer = _built(plugin)
    for _ in range(2):
        _step(model, optimizer)
    resumed, restored = _built(plugin)
    resumed.load_state_dict(model.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _step(model, optimizer)
    _step(resumed, restored)
    expected = model.state_dict()
    moved = [name for name, found in resumed.state_dict().items() if not torch.equal(found, expected[name])]
    expect(not moved, f"after restoring the state these parameters differ: {', '.join(moved)}")


@requirement(
    "H1", "Its factor is finite, 0 or above, and a function of step and length of the run", "schedule", after=("P6",)
)
def h1_factor(plugin: PluginUnderTest) -> None:
    """In runs of 1, 7 and 200 steps, in order, and in reverse order from another instance. Some factor is above 0."""
    schedule: Schedule = plugin.build()
    for total in (1, 7, 200):
        factors = [float(schedule.factor(step, total)) for step in range(total)]
        wrong = [each for each in factors if not 0 <= each < math.inf]
        expect(not wrong, f"expected factors of 0 or above in {total} steps, got {wrong[:3]}")
        expect(max(factors) > 0, f"all factors of a run of {total} steps are 0")
        other: Schedule = plugin.build()
        again = [float(other.factor(step, total)) for step in reversed(range(total))]
        expect(again[::-1] == factors, f"factors in {total} steps depend on the order of calls")


def _built(plugin: PluginUnderTest) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a small model with fixed weights, and the optimizer that the plug-in builds for it."""
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.7, parameter.numel()).view_as(parameter).sin())
    source, groups = plugin.build(), []
    for group in group_parameters(model):
        rule = source.update_rule(group.role, LR)
        groups.append({"params": list(group.parameters), "lr": rule.lr, "weight_decay": 0.0, "rule": rule.name})
    optimizer = source.build(groups, False)
    expect(isinstance(optimizer, torch.optim.Optimizer), f"build: expected a torch optimizer, got {optimizer!r}")
    return model, optimizer


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    weights = torch.linspace(0.1, 1.0, 8)
    (model(torch.arange(5)) * weights).square().mean().backward()
    # On a CPU, compiling small products takes a minute.
    with nullcontext() if torch.cuda.is_available() else torch.compiler.set_stance("force_eager"):
        optimizer.step()
