"""GistNet that encodes each block alone, then pools."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mcframe.bounds import Size, SizeOrZero
from mcframe.context.substitutions import slot_means
from mcframe.hookspecs import ModelShape
from mcframe_plugins.gistnet.pooling import Head, PooledGistNet, gist_head
from mcframe_plugins.layers import Layer


class TransformerGistNet(PooledGistNet):
    """A small bidirectional transformer inside each block, pooled by mean, query or class token.

    Isolated: a gist depends on its own block only, unless base_layer is set.

    Source:
        LCLM (arXiv 2606.09659): mean pooling; Perceiver (Jaegle et al., 2021): query pooling.

    Args:
        layers: Transformer layers.
        heads: Attention heads; must divide `gpt.width`.
        pooling: mean: over each slot's children. query: a learned query a slot. cls: a learned token a slot, read along
            with the children.
        head: Map from the pooled state to the gist.
        residual: Add the mean of the children's embeddings, so that training starts at the `mean` GistNet.
        base_layer: LOD1 is made from the base model's states after that many of its blocks; 0 = from embeddings.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        layers: SizeOrZero = 2,
        heads: Size = 4,
        pooling: Literal["mean", "query", "cls"] = "mean",
        head: Head = "mlp",
        residual: bool = True,
        base_layer: SizeOrZero = 0,
    ) -> None:
        children = shape.tree.block_size * shape.tree.slots
        super().__init__(
            "transformer", shape, layers=layers, heads=heads, children=children, residual=residual,
            slot_table=pooling != "mean",
        )  # fmt: skip
        if base_layer:
            self.context_blocks, self.reads_layer, self.masks_documents = None, base_layer, True
        self.pooling = pooling
        if pooling == "query":
            self.pool = Layer(shape.width, heads)
        self.head = gist_head(head, shape.width)

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of children [B, nodes, C, D]."""
        x = self.embed(children, lod)
        if self.pooling == "cls":
            x = torch.cat((self.slot_queries(x.shape[0]), x), dim=1)
        for layer in self.layers:
            x = layer(x)
        if self.pooling == "mean":
            pooled = slot_means(x, self.slots)
        elif self.pooling == "cls":
            pooled = x[:, : self.slots]
        else:
            pooled = self.pool(self.slot_queries(x.shape[0]), memory=x)
        return self.gists(pooled, children)
