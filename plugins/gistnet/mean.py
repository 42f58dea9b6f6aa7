"""GistNet without parameters: a baseline for learned ones."""

from __future__ import annotations

from torch import Tensor

from mcframe.context.substitutions import slot_means
from mcframe.hookspecs import GistNet, ModelShape


class MeanGistNet(GistNet):
    """A baseline: the mean of the children's embeddings. No parameters."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.slots = shape.tree.slots

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of children [B, nodes, K * slots(lod - 1), D]."""
        return slot_means(children, self.slots)
