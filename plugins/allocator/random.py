"""Blocks lose their place at random, whatever the scores: the strategy `random` of the evaluation `focus`."""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys, uniform
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Allocator
from mcframe_plugins.allocator.tree import best_focus, entry_shares

_VALUES = 1 << 36
"""Salt of the blocks' values, apart from those of variant strategies."""


class RandomAllocator(Allocator):
    """Every block is worth a random number; of the longest contexts within the budget the one worth most.

    At one level every set of blocks is as likely as any other. Nothing is expanded, since no score is read.
    """

    follows_scores = False

    def __init__(self, tree: ContextTree) -> None:
        self.tree = tree

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Focus [R, blocks], a function of seeds [R]; see the interface. Raises UserError where nothing fits."""
        tree, focus = context.tree, context.focus
        value = uniform(random_keys(hash_combine(seeds, _VALUES), tree.blocks))
        return best_focus(value, focus, focus, budget, tree, entry_shares(tree))
