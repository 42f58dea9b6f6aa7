"""Variants of few long spans.

`random_collapse` draws every mix of levels alike, and few of them are coarse. A long history is coarse: old text in few
gists of a high level.
"""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe_plugins.variants.drawing import DrawnVariants, collapse, random_order


class Aggressive(DrawnVariants):
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

    name, coarsest_first = "aggressive", True

    def draw(self, seeds: Tensor, attempt: int, known: Tensor, tree: ContextTree, scores: Tensor | None) -> Tensor:
        """Return focuses [B, V, blocks] of one mix at random positions."""
        counts = known[min(attempt // 2, known.shape[0] - 1)]
        return collapse(counts.expand(*seeds.shape, -1), random_order(seeds, tree), tree)
