"""Allocator that ignores the scores: the strategy `random` of the evaluation `focus_quality`."""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys, uniform
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Allocator
from mcframe_plugins.allocator.tree import best_focus, entry_fractions

_VALUES = 1 << 36
"""Salt of the values of blocks, different from those of variant strategies."""


class RandomAllocator(Allocator):
    """A baseline: random blocks are compressed, independent of the scores.

    Every block has a random value; the longest context within the budget with the highest value is taken. At one level
    every set of blocks is equally likely. Nothing is expanded.
    """

    follows_scores = False

    def __init__(self, tree: ContextTree) -> None:
        self.tree = tree

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the focus [R, blocks], a function of seeds [R]. Raises UserError if no context fits the budget."""
        tree, focus = context.tree, context.focus
        value = uniform(random_keys(hash_combine(seeds, _VALUES), tree.blocks))
        return best_focus(value, focus, focus, budget, tree, entry_fractions(tree))
