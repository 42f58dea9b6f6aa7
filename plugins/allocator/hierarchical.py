"""The exact best focus over all levels: the longest that fits, and of those the one that is worth most.

Greedy decides level by level and cannot take back a gist of LOD1 that stands in the way of one of LOD2. Here all
focuses are compared at once, see `tree`. What is maximised is the value of a multiple-choice knapsack (Kellerer,
Pferschy and Pisinger, Knapsack Problems, 2004) under a budget of entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import block_means
from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError
from mcframe.hookspecs import Allocator
from mcframe_plugins.allocator.tree import best_focus, entry_shares


class HierarchicalAllocator(Allocator):
    """Of all valid focuses, the longest within the budget; of those, the one of highest value. Any number of levels.

    Value: every entry of a context is worth the score of the text that it stands for, so a block with the mean score s
    is worth s raw, `s * G / K` at LOD1, `s * G / K**2` at LOD2, as a share of K entries. An entry that is given up
    costs the mean score of its text whatever its level, which is the order in which `greedy` collapses and, at one
    level, what `topk` maximises. Only blocks with a score above 0 get more detail than they have: zero scores change
    nothing that fits. Between equal values the context that changes fewest blocks is taken.

    kept        shares of a raw block's worth that are left at LOD1, LOD2, ...; None = its share of entries, as above.
                Gists that keep much make blocks of middling scores good to compress: (0.9, 0.5)
    iterations  rounds of scoring and allocating
    """

    def __init__(self, tree: ContextTree, *, kept: Sequence[float] | None = None, iterations: int = 2) -> None:
        shares = entry_shares(tree)[1:] if kept is None else list(kept)
        if len(shares) != tree.levels or any(not 0 <= share <= 1 for share in shares):
            raise UserError(
                f"allocator.hierarchical.kept is {kept}; it needs a share from 0 to 1 for each of {tree.levels} "
                "level(s)",
                binding="allocator.hierarchical.kept",
                remedy="give one number for LOD1 and one for each level above, or None for shares of entries",
            )
        self.tree, self.kept, self.iterations = tree, (1.0, *shares), iterations

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Focus [R, blocks]; see the interface. Raises UserError where no context fits the budget."""
        value = block_means(scores.float(), context)
        finest = torch.where(value > 0, 0, context.focus)
        return best_focus(value, context.focus, finest, budget, context.tree, self.kept)
