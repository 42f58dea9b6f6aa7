"""No variants: the same tokens in the same order, uncompressed."""

from __future__ import annotations

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import Sequences, VariantStrategy


class NoVariants(VariantStrategy):
    """The plain baseline: no variants; GistNet and LensNet are not built."""

    count = 0

    def __init__(self, tree: ContextTree) -> None:
        self.tree = tree

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Return an empty focus [B, 0, blocks]."""
        return seeds.new_zeros(sequences.tokens.shape[0], 0, sequences.tree.blocks)
