"""Variants of random nodes, every set equally likely.

Several mixes of levels may have the length: at K = 32, 33 gists of LOD1 save as much as one of LOD2. One mix is drawn
first, so that each usable level is trained.
"""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import randint
from mcframe.hookspecs import Sequences, VariantStrategy
from mcframe_plugins.variants.drawing import checked_count, distinct, mixes, place, random_order


class RandomCollapse(VariantStrategy):
    """Random nodes are collapsed until the context has the requested length.

    If several mixes of levels have this length, one is drawn first.

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        attempts: Draws in all, until the variants of a sequence differ.
    """

    def __init__(self, tree: ContextTree, *, count: int = 2, attempts: int = 6) -> None:
        self.tree, self.count, self.attempts = tree, checked_count("random_collapse", count), attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; each a function of its own sequence's seeds."""
        tree = sequences.tree
        known = mixes(tree, length, seeds.device)

        def draw(seeds: Tensor, attempt: int) -> Tensor:
            counts = known[randint(seeds, known.shape[0])]
            return place(counts, random_order(seeds, tree), tree)

        return distinct(draw, seeds, self.attempts)
