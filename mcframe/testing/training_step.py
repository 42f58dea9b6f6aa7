"""Small real training steps around a plug-in, with the reference plug-ins as the other parts.

The only module of the kit that constructs or calls the step and the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.working_context import WorkingContext, build_context, raw_context
from mcframe.hookspecs import Allocator, BaseShape, LossTerm, ModelShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.rope import GaussianRope
from mcframe.testing.host_sync import random_states
from mcframe.testing.plugin_under_test import VOCABULARY, PluginUnderTest
from mcframe.testing.reference import LinearGistNet, LinearLensNet, RandomNodes, ReferenceLoss
from mcframe.training.train_step import StepBatch, TrainStep

TREE = ContextTree(window=70, block_size=4, levels=2, slots=1, tail=9)
LENGTH = TREE.length((2, 1))
"""Two nodes of LOD1 and one of LOD2, or seven of LOD1."""

ROWS = 3


def build_step(kind: str, part: Any, width: int) -> TrainStep:
    """Return the module that a run trains, with `part` in its role if the kind belongs to the step."""
    shape = ModelShape(part.width if kind == "base" else width, TREE)
    with random_states(0):
        base = BaseShape(TREE, VOCABULARY, GaussianRope)
        gpt = part if kind == "base" else GPT(base, depth=2, width=width, heads=2)
        gistnet = part if kind == "gistnet" else LinearGistNet(shape)
        lensnet = part if kind == "lensnet" else LinearLensNet(shape)
        strategy = part if kind == "variants" else RandomNodes(TREE)
        if not strategy.count:  # plain training has neither network
            gistnet = lensnet = None
        model = MegaContextModel(gpt, gistnet, lensnet, strategy, TREE)
        return TrainStep(model, [ReferenceLoss(shape), *([part] if kind == "loss" else [])])


def step_with(plugin: PluginUnderTest) -> TrainStep:
    """Return a step with a new instance of the plug-in."""
    return build_step(plugin.kind, plugin.build(TREE), plugin.width)


def step_seeds(step: TrainStep, seed: int = 0, rows: int = ROWS) -> Tensor:
    """Return the variant seeds [rows, V] of a step."""
    return variant_seeds(seed, torch.arange(rows), step.model.strategy.count)


def some_tokens(seed: int, rows: int = ROWS) -> Tensor:
    """Return windows [rows, T + 1]."""
    return torch.randint(VOCABULARY, (rows, TREE.window + 1), generator=torch.Generator().manual_seed(seed))


def train(step: TrainStep, steps: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the number and the loss of every optimizer step while its gradients exist."""
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2, weight_decay=0.0)
    for number in range(steps):
        optimizer.zero_grad()
        step.begin_step(number / steps)
        loss, _ = step(StepBatch(some_tokens(number), step_seeds(step, number), LENGTH))
        loss.backward()
        yield number, loss.detach()
        optimizer.step()
        step.after_step()


def loss_term(step: TrainStep, tokens: Tensor, seeds: Tensor) -> LossTerm:
    """Return the value of the plug-in's loss in a step, for windows [B, T + 1] and seeds [B, V]."""
    terms: list[LossTerm] = []
    *_, loss = step.losses.each()
    handle = loss.register_forward_hook(lambda module, inputs, output: terms.append(output))
    try:
        step(StepBatch(tokens, seeds, LENGTH))
    finally:
        handle.remove()
    return terms[0]


def lens_scores(model: MegaContextModel, tokens: Tensor, context: WorkingContext) -> Tensor:
    """Return LensNet's scores [B, L] of the entries of a context, for windows [B, T]."""
    with torch.no_grad():
        return model.scores(context, *model.encode(tokens, with_nll=True))


def contexts() -> dict[str, WorkingContext]:
    """Return an uncompressed and a compressed context for `ROWS` windows."""
    focus = torch.zeros(ROWS, TREE.blocks, dtype=torch.long)
    focus[:, :4], focus[:, 4:6] = 2, 1
    return {"raw": raw_context(TREE, ROWS, torch.device("cpu")), "compressed": build_context(focus, TREE)}


def refocused(model: MegaContextModel, allocator: Allocator, budget: int) -> Tensor:
    """Return the focus [ROWS, blocks] after the allocator's rounds."""
    with torch.no_grad():
        return model.refocus(some_tokens(0)[:, :-1], allocator, budget, torch.arange(ROWS))[0]


def without_gradient(module: nn.Module) -> list[str]:
    """Return the names of the parameters that the last backward pass did not reach."""
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]
