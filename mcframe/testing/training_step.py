"""A small real training step around a plug-in, the other parts being the reference's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.hookspecs import ModelShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.model import MegaContextModel
from mcframe.testing.host_sync import random_states
from mcframe.testing.inputs import VOCABULARY
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.reference import LinearGistNet, LinearLensNet, RandomNodes, ReferenceLoss
from mcframe.training.train_step import StepBatch, TrainStep

GEOMETRY = ContextTree(window=70, block_size=4, levels=2, slots=1, tail=9)
LENGTH = GEOMETRY.length((2, 1))
"""Two nodes of LOD1 and one of LOD2, or seven of LOD1."""


def build_step(plugin: PluginUnderTest) -> TrainStep:
    """The module that a run trains, with the plug-in in its place where it is a part of it."""
    shape, own = ModelShape(plugin.width, GEOMETRY), plugin.build(GEOMETRY)
    with random_states(0):
        gpt = GPT(GEOMETRY, VOCABULARY, depth=2, width=plugin.width, heads=2)
        gistnet = own if plugin.kind == "gistnet" else LinearGistNet(shape)
        lensnet = own if plugin.kind == "lensnet" else LinearLensNet(shape)
        strategy = own if plugin.kind == "variants" else RandomNodes(GEOMETRY)
        if not strategy.count:  # the plain twin is built without them
            gistnet = lensnet = None
        model = MegaContextModel(gpt, gistnet, lensnet, strategy, GEOMETRY)
        losses = [own] if plugin.kind == "loss" else []
        return TrainStep(model, [ReferenceLoss(shape), *losses])


def train(step: TrainStep, steps: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the number and the loss of every optimizer step, with its gradients still there."""
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2, weight_decay=0.0)
    for number in range(steps):
        optimizer.zero_grad()
        seeds = variant_seeds(number, torch.arange(3), step.model.strategy.count)
        loss, _ = step(StepBatch(some_tokens(number), seeds, LENGTH))
        loss.backward()
        yield number, loss.detach()
        optimizer.step()


def some_tokens(seed: int) -> Tensor:
    """Windows [3, T + 1]."""
    return torch.randint(VOCABULARY, (3, GEOMETRY.window + 1), generator=torch.Generator().manual_seed(seed))


def without_gradient(module: Any) -> list[str]:
    """Names of the parameters that the last backward pass has not reached at all."""
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]
