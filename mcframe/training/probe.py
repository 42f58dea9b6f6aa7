"""Checks of what plug-ins return, on one small batch before training.

Training itself does not check: the step stays one graph, without state and without reading values back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import compressible_nodes, group_by_node
from mcframe.context.focus_ops import lengths as lengths_of
from mcframe.context.step_metrics import StepMetrics
from mcframe.context.working_context import build_context, raw_context
from mcframe.hookspecs import Allocator, LossTerm, VariantStrategy
from mcframe.hookspecs import Sequences as ProposalInputs
from mcframe.modeling.model import MegaContextModel
from mcframe.registry.attribution import described
from mcframe.registry.checks import ContractError, check_focus, check_scores, check_shape, raise_contract_error
from mcframe.training.first_interval import plugin_modules
from mcframe.training.random_states import unchanged_random_states
from mcframe.training.train_step import StepBatch, TrainStep

_ROWS = 4
"""Rows of scores that an allocator is tried with."""

Check = Callable[[Any, tuple[Any, ...], Any], None]


@torch.no_grad()
def probe_plugins(
    step: TrainStep, run: Callable[[StepBatch], Any], tokens: Tensor, lengths: Sequence[int]
) -> list[str]:
    """Run one batch through a step and check what every plug-in returns.

    Args:
        step: The step, in eval mode.
        run: Runs the step, through its engine if it has one.
        tokens: Windows [B, T + 1], on the device of the step.
        lengths: Lengths of variants in entries; the step runs with the first.

    Returns:
        Warnings.

    Raises:
        ContractError: A plug-in breaks its interface.
    """
    model, warnings = step.model, dict[str, None]()
    seeds = variant_seeds(0, torch.arange(tokens.shape[0], device=tokens.device), model.strategy.count)
    held = {id(parameter) for parameter in step.parameters()}
    # A resumed run must draw what the uninterrupted one draws.
    with _checked(step), unchanged_random_states():
        for length in dict.fromkeys(lengths) if model.strategy.count else ():
            focus = _proposed(model, tokens[:, :-1], seeds, length)
            if step.losses.require("pairs") and repeats_only(focus, model.tree):
                warnings[repetition(model.strategy)] = None
        run(StepBatch(tokens, seeds, lengths[0]))
    for module in plugin_modules(step):
        for name, parameter in module.named_parameters():
            if id(parameter) not in held:
                raise ContractError(
                    module, f"forward: it creates the parameter {name}, which no optimizer trains", method="forward",
                    remedy="Create parameters in __init__.",
                )  # fmt: skip
    return list(warnings)


def _proposed(model: MegaContextModel, inputs: Tensor, seeds: Tensor, length: int) -> Tensor:
    """Return the focuses [B, V, blocks] that the strategy proposes, checked."""
    strategy, tree, scores = model.strategy, model.tree, None
    if strategy.needs_scores:
        table, nll = model.encode(inputs, with_nll=True)
        scores = model.scores(raw_context(tree, inputs.shape[0], inputs.device), table, nll)
    return propose(strategy, ProposalInputs(inputs, tree), scores, seeds, length)


def propose(
    strategy: VariantStrategy, sequences: ProposalInputs, scores: Tensor | None, seeds: Tensor, length: int
) -> Tensor:
    """Return the focuses [B, V, blocks] that a strategy proposes. Raises ContractError if they are not valid."""
    focus = strategy.propose(sequences, scores, length, seeds)
    tree = sequences.tree
    check_shape(strategy, "propose", "a focus [B, V, blocks]", focus, (*seeds.shape, tree.blocks), torch.int64)
    check_focus(strategy, "propose", focus.flatten(0, 1), tree, length)
    return focus


def probe_focuses(
    strategy: VariantStrategy, allocator: Allocator, tree: ContextTree, lengths: Sequence[int], *, pairs: bool
) -> list[str]:
    """Check a strategy and an allocator on random tokens and scores, on the CPU and without a model.

    Args:
        strategy: The strategy.
        allocator: The allocator.
        tree: The context tree.
        lengths: Lengths of variants in entries.
        pairs: Whether a loss requires preference pairs.

    Returns:
        Warnings.

    Raises:
        ContractError: One of them breaks its interface.
    """
    device, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
    seeds = variant_seeds(0, torch.arange(2), strategy.count)
    tokens = torch.randint(2, (2, tree.window), generator=generator)
    scores = torch.rand(2, tree.cursor, generator=generator) * 2 - 1 if strategy.needs_scores else None
    focuses = [propose(strategy, ProposalInputs(tokens, tree), scores, seeds, length) for length in {*lengths}]
    probe_allocator(allocator, tree, min(lengths), device)
    return [repetition(strategy)] if pairs and any(repeats_only(focus, tree) for focus in focuses) else []


def repeats_only(focus: Tensor, tree: ContextTree) -> bool:
    """Return whether the variants [B, V, blocks] of each sequence are equal though others of their length exist."""
    if focus.shape[1] < 2 or not bool((focus == focus[:, :1]).all()):
        return False
    first = focus[:, 0]
    for lod in range(1, tree.levels + 1):
        if tree.nodes(lod):
            nodes = group_by_node(first, tree, lod)
            free = (nodes == 0).all(dim=-1) & compressible_nodes(tree, lod, focus.device)
            if bool(((nodes == lod).all(dim=-1).any(dim=-1) & free.any(dim=-1)).any()):
                return True  # exchanging a compressed node and a free one changes no length
    return False


def repetition(strategy: VariantStrategy) -> str:
    """Return the warning for a strategy that repeats one variant."""
    return (
        f"{described(strategy)}: propose returns the same focus for every variant of a sequence, so that no preference "
        "pair trains LensNet. Draw each variant from its own seed in seeds [B, V], with mcframe.context.counter_rng."
    )


def probe_allocator(allocator: Allocator, tree: ContextTree, shortest: int, device: torch.device) -> None:
    """Check the budgets that an allocator keeps in all of its rounds, for several rows of random scores.

    Raises:
        ContractError: A row exceeds its budget, or leaves entries unused though `fills_budget` is True.
    """
    limited = replace(tree, levels=min(tree.levels, allocator.highest_lod or tree.levels))
    generator = torch.Generator().manual_seed(0)
    raw = raw_context(tree, _ROWS, device)
    oldest = torch.full_like(raw.focus, torch.iinfo(torch.int32).max)
    seeds = torch.arange(_ROWS, device=device)
    least = max(shortest, limited.minimum_length)
    for budget in dict.fromkeys((least, (least + tree.window) // 2)):
        expected, context, age = limited.reachable_length(budget), raw, oldest
        for number in range(allocator.iterations):
            scores = torch.rand(_ROWS, context.before_cursor().length, generator=generator) * 2 - 1
            prefix = replace(context, age=age).before_cursor()
            focus = allocator.allocate(scores.to(device), prefix, budget, seeds)
            check_shape(allocator, "allocate", "a focus [R, blocks]", focus, context.focus.shape, torch.int64)
            check_focus(allocator, "allocate", focus, tree)
            _check_budget(allocator, lengths_of(focus, tree).tolist(), budget, 0 if number else expected)
            age = torch.where(focus != context.focus, 0, age + 1)
            context = build_context(focus, tree)


def _check_budget(allocator: Allocator, used: list[int], budget: int, expected: int) -> None:
    rows = f"rows of {', '.join(map(str, used))} entries"
    if max(used) > budget:
        raise_contract_error(allocator, "allocate", f"expected at most {budget} entries in each row, got {rows}")
    if allocator.fills_budget and min(used) < expected:
        raise ContractError(
            allocator, f"allocate: expected {expected} entries in each row for a budget of {budget}, got {rows}",
            method="allocate", remedy="Correct allocate, or set fills_budget = False if it may leave entries unused.",
        )  # fmt: skip


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
