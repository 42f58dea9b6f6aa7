"""Exact allocator of one level: nodes at LOD1 cost the same, so one sort finds the best set."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import block_means, compressible_nodes
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Allocator


class TopKAllocator(Allocator):
    """The best set of raw blocks among gists of LOD1, exactly; nothing above LOD1.

    A collapsed block becomes raw only with a score above 0; of equal scores the raw block stays raw. Text above LOD1 is
    rebuilt from LOD0 and LOD1.

    Source:
        Block selection by score: Quest (Tang et al., 2024).

    Raises:
        UserError: The budget is below what LOD1 can reach.
    """

    highest_lod = 1

    def __init__(self, tree: ContextTree) -> None:
        self.tree = replace(tree, levels=1)

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the focus [R, blocks]; see the interface."""
        tree = self.tree.with_window(context.tree.window)
        _, mixes = tree.reachable(budget)
        collapsed = mixes[0][0]  # at one level a length has one mix
        value = block_means(scores.float(), context)
        free = compressible_nodes(tree, 1, scores.device)
        raw = context.focus == 0
        candidate = free & (raw | (value > 0))
        # Lexicographic: by score, among equals the raw ones first. Two stable sorts.
        by_state = raw.int().argsort(dim=1, descending=True, stable=True)
        ordered = torch.where(candidate, value, -torch.inf).gather(1, by_state)
        order = by_state.gather(1, ordered.argsort(dim=1, descending=True, stable=True))
        rank = order.argsort(dim=1)
        keep = candidate & (rank < tree.compressible_nodes(1) - collapsed)
        return torch.where(free & ~keep, 1, 0)
