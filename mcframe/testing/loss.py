"""Clauses of objectives: one figure a sequence, of that sequence alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mcframe.context.counter_rng import variant_seeds
from mcframe.hookspecs import LossTerm, StepView
from mcframe.modeling.added_objectives import AddedObjectives
from mcframe.testing.host_sync import NoHostSync, NoReadingMethods, random_states
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement
from mcframe.testing.training_step import GEOMETRY, LENGTH, build_step, some_tokens, train, without_gradient


def step_with(objective: Any, plugin: PluginUnderTest) -> Any:
    """A real step with the objective in it."""
    step = build_step(plugin)
    step.added = AddedObjectives([objective])
    return step


def term_of(plugin: PluginUnderTest, rows: list[int]) -> tuple[LossTerm, Any]:
    """What the objective says of some sequences in a real step, and the step."""
    objective, seen = plugin.build(GEOMETRY), list[tuple[StepView, LossTerm]]()
    step = step_with(objective, plugin)
    objective.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    seeds = variant_seeds(0, torch.arange(3), step.strategy.count)
    with random_states(0):
        step(some_tokens(0)[rows], seeds[rows], LENGTH)
    return seen[0][1], step


@requirement("O1", "It says what it is called, what it weighs and what it needs", "loss", after=("P9",))
def o1_declared(plugin: PluginUnderTest) -> None:
    """Letters, digits and underscores; a number; one of the four needs."""
    part = plugin.specimen
    expect(isinstance(part.name, str) and part.name.isidentifier(), f"name is {part.name!r}")
    expect(isinstance(part.weight, (int, float)), f"weight is {part.weight!r}; it is a number")
    known = ("baseline", "variants", "gists", "scores")
    expect(part.needs in known, f"needs is {part.needs!r}; it is one of {', '.join(known)}")


@requirement("O2", "It returns a LossTerm with one finite figure a sequence", "loss", after=("O1",))
def o2_term(plugin: PluginUnderTest) -> None:
    """In a real training step with all that an objective may need."""
    term, _ = term_of(plugin, [0, 1, 2])
    loss: Tensor = term.loss
    expect(list(loss.shape) == [3], f"three sequences gave a loss of the shape {list(loss.shape)}")
    expect(bool(loss.isfinite().all()), f"the loss is {loss.tolist()}")


@requirement("O3", "The loss of a sequence depends on that sequence alone", "loss", after=("O2",))
def o3_rows(plugin: PluginUnderTest) -> None:
    """Or cutting a batch into micro-batches and ranks would change it."""
    every = term_of(plugin, [0, 1, 2])[0].loss
    for row in range(3):
        alone = term_of(plugin, [row])[0].loss
        same = torch.allclose(alone, every[row : row + 1], atol=1e-5, rtol=1e-4)
        expect(same, f"sequence {row} has {every[row]:.5f} among others and {alone[0]:.5f} alone")


@requirement("O4", "Nothing is read back to the host", "loss", after=("O2",))
def o4_host(plugin: PluginUnderTest) -> None:
    """It runs within every training step."""
    step = step_with(plugin.build(GEOMETRY), plugin)
    tokens, seeds = some_tokens(0), variant_seeds(0, torch.arange(3), step.strategy.count)
    step(tokens, seeds, LENGTH)
    with NoHostSync(), NoReadingMethods():
        step(tokens, seeds, LENGTH)


@requirement(
    "O5", "It trains something, and every parameter of its own takes part in every step", "loss", after=("O2",)
)
def o5_gradient(plugin: PluginUnderTest) -> None:
    """At ZeRO 3 a parameter without a gradient would be moved by an old one."""
    term, step = term_of(plugin, [0, 1, 2])
    expect(term.loss.requires_grad, "nothing that is trained has a part in the loss")
    for number, loss in train(step_with(plugin.build(GEOMETRY), plugin), 1):
        expect(bool(loss.isfinite()), f"the loss of step {number} is not finite")
    torch.autograd.backward(term.loss.mean())
    unused = without_gradient(step.added)
    expect(not unused, f"no gradient reaches {', '.join(unused)}")
