"""A gist is the mean of what it replaces: the control `mean`, to be beaten by what is learned."""

from __future__ import annotations

from torch import Tensor

from mcframe.context.substitutions import slot_means
from mcframe.hookspecs import GistNet, ModelShape


class MeanGistNet(GistNet):
    """Mean embedding of each slot's stretch of children. No parameters."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.slots = shape.tree.slots

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """children [B, nodes, K * slots(lod - 1), D] -> [B, nodes, G, D]."""
        return slot_means(children, self.slots)
