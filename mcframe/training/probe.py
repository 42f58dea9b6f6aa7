"""Checks of what plug-ins return, on one small batch before training.

Training itself does not check: the step stays one graph, without state and without reading values back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.counter_rng import variant_seeds
from mcframe.context.step_metrics import StepMetrics
from mcframe.context.working_context import raw_context
from mcframe.hookspecs import LossTerm, Sequences
from mcframe.modeling.model import MegaContextModel
from mcframe.registry.checks import check_focus, check_scores, check_shape, raise_contract_error
from mcframe.training.random_states import unchanged_random_states
from mcframe.training.train_step import StepBatch, TrainStep

Check = Callable[[Any, tuple[Any, ...], Any], None]


@torch.no_grad()
def probe_plugins(step: TrainStep, run: Callable[[StepBatch], Any], tokens: Tensor, length: int) -> None:
    """Run one batch through a step and check what every plug-in returns.

    Args:
        step: The step, in eval mode.
        run: Runs the step, through its engine if it has one.
        tokens: Windows [B, T + 1], on the device of the step.
        length: Entries of each variant.

    Raises:
        ContractError: A plug-in breaks its interface.
    """
    model = step.model
    seeds = variant_seeds(0, torch.arange(tokens.shape[0], device=tokens.device), model.strategy.count)
    # A resumed run must draw what the uninterrupted one draws.
    with _checked(step), unchanged_random_states():
        if model.strategy.count:
            _check_strategy(model, tokens[:, :-1], seeds, length)
        run(StepBatch(tokens, seeds, length))


def _check_strategy(model: MegaContextModel, inputs: Tensor, seeds: Tensor, length: int) -> None:
    strategy, tree, scores = model.strategy, model.tree, None
    if strategy.needs_scores:
        table, nll = model.encode(inputs, with_nll=True)
        scores = model.scores(raw_context(tree, inputs.shape[0], inputs.device), table, nll)
    focus = strategy.propose(Sequences(inputs, tree), scores, length, seeds)
    check_shape(strategy, "propose", "a focus [B, V, blocks]", focus, (*seeds.shape, tree.blocks), torch.int64)
    check_focus(strategy, "propose", focus.flatten(0, 1), tree, length)


@contextmanager
def _checked(step: TrainStep) -> Iterator[None]:
    """Check the outputs of the plug-in modules of a step within this context."""
    model = step.model
    checks: list[tuple[nn.Module | None, Check]] = [
        (model.gistnet, _gist_check(model.tree.slots)),
        (model.lensnet, _check_lens_scores),
        (model.gpt.positions, _positions_check(model.gpt.heads, model.gpt.head_width)),
        *((loss, _check_term) for loss in step.losses.each()),
    ]
    handles = [module.register_forward_hook(check) for module, check in checks if module is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gist_check(slots: int) -> Check:
    def check(gistnet: Any, inputs: tuple[Any, ...], gists: Any) -> None:
        children, lod = inputs
        sequences, nodes, _, width = children.shape
        what = f"gists [B, nodes, G, D] of LOD{lod}"
        check_shape(gistnet, "forward", what, gists, (sequences, nodes, slots, width), children.dtype)

    return check


def _check_lens_scores(lensnet: Any, inputs: tuple[Any, ...], scores: Any) -> None:
    prefix, embeddings = inputs
    check_shape(lensnet, "forward", "one score an entry [R, L]", scores, embeddings.shape[:2])
    check_scores(lensnet, torch.where(prefix.valid, scores.detach(), 0.0))


def _positions_check(heads: int, width: int) -> Check:
    def check(positions: Any, inputs: tuple[Any, ...], factors: Any) -> None:
        (context,) = inputs
        if not isinstance(factors, tuple) or len(factors) != 2:
            raise_contract_error(positions, "forward", "expected a pair of cosine and sine, got something else")
        for what, factor in zip(("cosine", "sine"), factors, strict=True):
            own = heads if isinstance(factor, Tensor) and factor.shape[1:2] == (heads,) else 1
            shape = (context.token.shape[0], own, context.length, width // 2)
            check_shape(positions, "forward", f"{what} [R, 1 or heads, L, width / 2]", factor, shape, torch.float32)

    return check


def _check_term(loss: Any, inputs: tuple[Any, ...], term: Any) -> None:
    (view,) = inputs
    if not isinstance(term, LossTerm):
        raise_contract_error(loss, "forward", f"expected a LossTerm, got a value of type {type(term).__name__}")
    check_shape(loss, "forward", "a LossTerm with a loss [B]", term.loss, view.uncompressed.inputs.shape[:1])
    if isinstance(term.metrics, StepMetrics):
        return
    for label, values in term.metrics.items():
        if not isinstance(values, Tensor):
            raise_contract_error(
                loss, "forward", f"metric {label!r}: expected a tensor, got a value of type {type(values).__name__}"
            )
