"""Variants of random nodes, every set equally likely.

Several mixes of levels may have the length: at K = 32, 33 gists of LOD1 save as much as one of LOD2. One mix is drawn
first, so that each usable level is trained.
"""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import randint
from mcframe_plugins.variants.drawing import DrawnVariants, collapse, random_order


class RandomCollapse(DrawnVariants):
    """Random nodes are collapsed until the context has the requested length.

    If several mixes of levels have this length, one is drawn first.

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        attempts: Draws in all, until the variants of a sequence differ.
    """

    name = "random_collapse"

    def draw(self, seeds: Tensor, attempt: int, known: Tensor, tree: ContextTree, scores: Tensor | None) -> Tensor:
        """Return focuses [B, V, blocks] of random nodes."""
        return collapse(known[randint(seeds, known.shape[0])], random_order(seeds, tree), tree)
