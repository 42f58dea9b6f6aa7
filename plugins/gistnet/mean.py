"""GistNet without parameters: a baseline for learned ones."""

from __future__ import annotations

from torch import Tensor

from mcframe.context.substitutions import mean_gists
from mcframe.hookspecs import GistNet, ModelShape


class MeanGistNet(GistNet):
    """A baseline: the mean of the embeddings of the tokens that a slot stands for. No parameters."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.tree = shape.tree

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of children [B, nodes, K * slots(lod - 1), D]."""
        return mean_gists(children, self.tree, lod)
