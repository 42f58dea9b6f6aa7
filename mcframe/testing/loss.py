"""Requirements of losses: one value a sequence, which depends on that sequence alone."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from mcframe.context.counter_rng import variant_seeds
from mcframe.hookspecs import LossTerm, Need
from mcframe.testing.host_sync import NoHostSync, NoReadingMethods, random_states
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement
from mcframe.testing.training_step import LENGTH, build_step, some_tokens, without_gradient
from mcframe.training.train_step import StepBatch, TrainStep


def term_of(plugin: PluginUnderTest, rows: list[int]) -> tuple[LossTerm, Any]:
    """Return the term of some sequences in a real step, and the loss."""
    step, seen = build_step(plugin), list[LossTerm]()
    loss = loss_under_test(step, plugin)
    loss.register_forward_hook(lambda _, inputs, output: seen.append(output))
    seeds = variant_seeds(0, torch.arange(3), step.model.strategy.count)
    with random_states(0):
        step(StepBatch(some_tokens(0)[rows], seeds[rows], LENGTH))
    return seen[0], loss


def loss_under_test(step: TrainStep, plugin: PluginUnderTest) -> Any:
    """Return the loss of the plug-in in a step."""
    return step.losses[plugin.specimen.name]


@requirement("O1", "It says what it is called, what it weighs and what it needs", "loss", after=("P9",))
def o1_declared(plugin: PluginUnderTest) -> None:
    """Letters, digits and underscores; a number; a tuple of known needs."""
    part = plugin.specimen
    expect(isinstance(part.name, str) and part.name.isidentifier(), f"name is {part.name!r}")
    expect(isinstance(part.weight, (int, float)), f"weight is {part.weight!r}; it is a number")
    known = set(get_args(Need))
    right = isinstance(part.needs, tuple) and set(part.needs) <= known
    expect(right, f"needs is {part.needs!r}; expected a tuple of names among {', '.join(sorted(known))}")


@requirement("O2", "It returns a LossTerm with one finite figure a sequence", "loss", after=("O1",))
def o2_term(plugin: PluginUnderTest) -> None:
    """In a real training step with every tensor that a loss may require."""
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
    step = build_step(plugin)
    batch = StepBatch(some_tokens(0), variant_seeds(0, torch.arange(3), step.model.strategy.count), LENGTH)
    step(batch)
    with NoHostSync(), NoReadingMethods():
        step(batch)


@requirement(
    "O5", "It trains something, and every parameter of its own takes part in every step", "loss", after=("O2",)
)
def o5_gradient(plugin: PluginUnderTest) -> None:
    """At ZeRO 3 a parameter without a gradient would be moved by an old one."""
    term, loss = term_of(plugin, [0, 1, 2])
    expect(term.loss.requires_grad, "nothing that is trained has a part in the loss")
    torch.autograd.backward(term.loss.mean())
    unused = without_gradient(loss)
    expect(not unused, f"no gradient reaches {', '.join(unused)}")
