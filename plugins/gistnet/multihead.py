"""GistNet of several heads and several queries a slot."""

from __future__ import annotations

from torch import Tensor

from mcframe.bounds import Size, SizeOrZero
from mcframe.hookspecs import ModelShape
from mcframe_plugins.gistnet.pooling import Head, HeadPooling, PooledGistNet, gist_head


class MultiheadGistNet(PooledGistNet):
    """Several heads and several queries a slot; a map of their concatenated reads is the gist.

    Every head has a softmax of its own over the children, so that a gist can hold several facts. Isolated: a gist
    depends on its own block only.

    Source:
        Set Transformer (Lee et al., 2019): pooling by learned queries.

    Args:
        heads: Attention heads; must divide `gpt.width`.
        queries: Learned queries a slot; each reads with every head.
        layers: Transformer layers before the pooling, so that children read their neighbours; 0 = none.
        head: Map from the concatenated reads to the gist.
        residual: Add the mean of the children's embeddings, so that training starts near the `mean` GistNet.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        heads: Size = 4,
        queries: Size = 4,
        layers: SizeOrZero = 1,
        head: Head = "mlp",
        residual: bool = True,
    ) -> None:
        children = shape.tree.block_size * shape.tree.slots
        super().__init__(
            "multihead", shape, layers=layers, heads=heads, children=children, residual=residual, slot_table=False
        )
        self.pool = HeadPooling(shape.width, heads, self.slots, queries)
        self.head = gist_head(head, shape.width, queries)

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of children [B, nodes, C, D]."""
        x = self.embed(children, lod)
        for layer in self.layers:
            x = layer(x)
        return self.gists(self.pool(x), children)
