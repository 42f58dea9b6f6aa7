"""Budgets that a run sets its allocator: those out of reach are reported before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from mcframe.config.schema import RunConfig
from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import raw_context
from mcframe.errors import UserError
from mcframe.evaluation.collapse import entries
from mcframe.hookspecs import Allocator, Evaluation
from mcframe.registry.attribution import described

_TARGETS = 9
"""Target lengths of the curriculum that are tried, its extremes among them."""


def check_budgets(run_config: RunConfig, allocator: Allocator, evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a warning for each budget out of reach of an evaluation that runs while training; it is skipped.

    Raises:
        UserError: The allocator does not reach a target length of the run, at which LensNet works.
    """
    if run_config.gistnet is None or run_config.lensnet is None:  # no allocator is called
        return []
    context, tree = run_config.context, run_config.context.tree
    targets = {context.target(number / (_TARGETS - 1)): number for number in range(_TARGETS)}
    for target, number in sorted(targets.items()):
        if reason := out_of_reach(allocator, tree, target):
            # Lengths are monotonic, so that the shortest is bound by one of the two ends.
            name = "length_start" if number == 0 else "length_end"
            raise UserError(
                f"{described(allocator)} does not reach the {target} entries of context.{name}: {reason}",
                remedy=f"Raise context.{name}, or select another run.allocator.",
                binding=f"context.{name}",
            )
    if not run_config.evaluation.every:
        return []
    return [warning for each in evaluations for warning in _skipped(each, allocator, tree)]


def out_of_reach(allocator: Allocator, tree: ContextTree, budget: int) -> str:
    """Return why an allocator does not reach a budget, or an empty string. It is tried with random scores."""
    limited = replace(tree, levels=min(tree.levels, allocator.highest_lod or tree.levels))
    if limited.minimum_length > budget:
        levels = "" if limited.levels == tree.levels else f" with LOD{limited.levels} as the highest level"
        return f"the shortest context{levels} has {limited.minimum_length} entries"
    context = raw_context(tree, 1, torch.device("cpu"))
    before = context.before_cursor()
    scores = torch.rand(before.token.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        allocator.allocate(scores, before, budget, torch.zeros(1, dtype=torch.int64))
    except UserError as error:
        return error.message
    return ""


def _skipped(evaluation: Evaluation, allocator: Allocator, tree: ContextTree) -> Iterator[str]:
    for fraction in evaluation.fractions:
        if reason := out_of_reach(allocator, tree, entries(tree, fraction)):
            budget = f"a budget of {100 * fraction:g} % ({entries(tree, fraction)} entries)"
            yield f"evaluation {evaluation.name}: {budget} is out of reach: {reason}"
