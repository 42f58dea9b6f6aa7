"""Allocator that ignores the scores and keeps recent text: a strong baseline for every LensNet."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Allocator
from mcframe_plugins.allocator.tree import best_focus, entry_fractions


class RecencyAllocator(Allocator):
    """A baseline: the oldest text is compressed first and most, independent of the scores.

    Of the longest contexts within the budget, the one whose entries are nearest to the cursor. Nothing is expanded:
    text in a gist stays there. With `context.sink` the first blocks stay raw, as in StreamingLLM.

    Source:
        StreamingLLM (Xiao et al., 2024).
    """

    follows_scores = False

    def __init__(self, tree: ContextTree) -> None:
        self.tree = tree

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the focus [R, blocks]; see the interface. Raises UserError if no context fits the budget."""
        tree, focus = context.tree, context.focus
        position = torch.arange(1, tree.blocks + 1, dtype=torch.float64, device=focus.device) / tree.blocks
        return best_focus(position.expand(focus.shape), focus, focus, budget, tree, entry_fractions(tree))
