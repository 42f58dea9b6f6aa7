"""Exact allocator over all levels: a multiple-choice knapsack on the tree, solved in `tree`.

`greedy` decides level by level and cannot undo a gist of LOD1 that is in the way of one of LOD2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcframe.bounds import Fraction, Repeats
from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import block_means
from mcframe.context.working_context import WorkingContext
from mcframe.errors import require
from mcframe.hookspecs import Allocator
from mcframe_plugins.allocator.tree import best_focus, entry_fractions


class HierarchicalAllocator(Allocator):
    """The best focus over all levels, exactly: the longest within the budget, of those the one of most value.

    Every entry is worth the score of its text. A block with the mean score s is worth s raw, `s * G / K` at LOD1, `s *
    G / K**2` at LOD2, as a fraction of its K entries. Only blocks with a score above 0 get more detail than they have.
    Between equal values the context that changes fewest blocks is taken.

    Source:
        Multiple-choice knapsack (Kellerer, Pferschy and Pisinger, 2004).

    Args:
        kept: Fractions of a raw block's value that remain at LOD1, LOD2, ...; None = the fraction of entries. With
            gists that keep much, such as (0.9, 0.5), blocks of middling scores are compressed.
        iterations: Rounds of scoring and allocating.
    """

    def __init__(self, tree: ContextTree, *, kept: Sequence[Fraction] | None = None, iterations: Repeats = 2) -> None:
        fractions = entry_fractions(tree)[1:] if kept is None else list(kept)
        fits = len(fractions) == tree.levels
        require(fits, "allocator.hierarchical.kept", kept, f"a fraction from 0 to 1 for each of {tree.levels} level(s)")
        self.tree, self.kept, self.iterations = tree, (1.0, *fractions), iterations

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the focus [R, blocks]; see the interface. Raises UserError if no context fits the budget."""
        value = block_means(scores.float(), context)
        finest = torch.where(value > 0, 0, context.focus)
        return best_focus(value, context.focus, finest, budget, context.tree, self.kept)
