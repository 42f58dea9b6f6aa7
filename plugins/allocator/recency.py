"""What is near stays raw, whatever the scores: a control that every LensNet must beat, and a strong one.

Keeping a window of recent tokens is what StreamingLLM (Xiao et al., 2024) shows to carry a language model a long way;
with `context.sink` the first blocks stay too, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Allocator
from mcframe_plugins.allocator.tree import best_focus, entry_shares


class RecencyAllocator(Allocator):
    """The oldest text is compressed first and furthest: a block is worth its place, and no entry more than that.

    Of the longest contexts within the budget the one whose entries stand nearest to the cursor. Nothing is expanded,
    since no score is read: text that has become a gist stays one.
    """

    follows_scores = False

    def __init__(self, tree: ContextTree) -> None:
        self.tree = tree

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Focus [R, blocks]; see the interface. Raises UserError where no context fits the budget."""
        tree, focus = context.tree, context.focus
        place = torch.arange(1, tree.blocks + 1, dtype=torch.float64, device=focus.device) / tree.blocks
        return best_focus(place.expand(focus.shape), focus, focus, budget, tree, entry_shares(tree))
