"""Variants of few long spans.

`random_collapse` draws every mix of levels alike, and few of them are coarse. A long history is coarse: old text in few
gists of a high level.
"""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import Sequences, VariantStrategy
from mcframe_plugins.variants.drawing import checked_count, distinct, mixes, place, random_order


class Aggressive(VariantStrategy):
    """As much as possible in gists of the highest levels: few long spans, the rest raw.

    Of the mixes of the requested length, the one with most nodes at the highest LOD, at random positions. At one level
    this is `random_collapse`.

    Source:
        Compressive Transformer (Rae et al., 2020).

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        attempts: Draws in all, until the variants of a sequence differ; after every second one from the next coarsest
            mix.
    """

    def __init__(self, tree: ContextTree, *, count: int = 2, attempts: int = 6) -> None:
        self.tree, self.count, self.attempts = tree, checked_count("aggressive", count), attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; each a function of its own sequence's seeds."""
        tree = sequences.tree
        known = mixes(tree, length, seeds.device, coarsest_first=True)

        def draw(seeds: Tensor, attempt: int) -> Tensor:
            counts = known[min(attempt // 2, known.shape[0] - 1)]
            return place(counts.expand(*seeds.shape, -1), random_order(seeds, tree), tree)

        return distinct(draw, seeds, self.attempts)
