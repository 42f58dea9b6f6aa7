"""GistNet that encodes each block alone, then pools."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mcframe.context.substitutions import slot_means
from mcframe.hookspecs import GistNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.gistnet.pooling import Head, check_at_least, check_heads, gist_head
from mcframe_plugins.layers import Layer, rms_norm


class TransformerGistNet(GistNet):
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
        layers: int = 2,
        heads: int = 4,
        pooling: Literal["mean", "query", "cls"] = "mean",
        head: Head = "mlp",
        residual: bool = True,
        base_layer: int = 0,
    ) -> None:
        super().__init__()
        width, tree = shape.width, shape.tree
        check_heads("transformer", heads, width)
        check_at_least("transformer.base_layer", base_layer, 0)
        if base_layer:
            self.context_blocks, self.reads_layer = None, base_layer
        self.slots, self.pooling, self.residual = tree.slots, pooling, residual
        self.child_embed = nn.Parameter(torch.randn(tree.block_size * tree.slots, width) * 0.02)
        self.lod_embed = nn.Parameter(torch.randn(tree.levels, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.slot_embed = None if pooling == "mean" else nn.Parameter(torch.randn(tree.slots, width) * 0.02)
        if pooling == "query":
            self.pool = Layer(width, heads)
        self.head = gist_head(head, width)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables of indices."""
        return group_parameters(self, embedding=[self.child_embed, self.lod_embed, self.slot_embed])

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """children [B, nodes, C, D] -> [B, nodes, G, D]."""
        sequences, nodes, count, width = children.shape
        x = rms_norm(children).flatten(0, 1) + self.child_embed[:count] + self.lod_embed[lod - 1]
        if self.pooling == "cls":
            x = torch.cat((self.slot_embed.expand(x.shape[0], -1, -1), x), dim=1)
        for layer in self.layers:
            x = layer(x)
        if self.pooling == "mean":
            pooled = slot_means(x, self.slots)
        elif self.pooling == "cls":
            pooled = x[:, : self.slots]
        else:
            pooled = self.pool(self.slot_embed.expand(x.shape[0], -1, -1), memory=x)
        gists: Tensor = self.head(rms_norm(pooled)).view(sequences, nodes, self.slots, width)
        # Token embeddings are small; the residual is scaled like the head's output, to unit mean square.
        return gists + rms_norm(slot_means(children, self.slots)) if self.residual else gists
