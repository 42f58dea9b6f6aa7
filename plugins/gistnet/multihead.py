"""GistNet of several heads and several queries a slot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.context.substitutions import slot_means
from mcframe.hookspecs import GistNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.gistnet.pooling import Head, HeadPooling, check_at_least, check_heads, gist_head
from mcframe_plugins.layers import Layer, rms_norm


class MultiheadGistNet(GistNet):
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
        heads: int = 4,
        queries: int = 4,
        layers: int = 1,
        head: Head = "mlp",
        residual: bool = True,
    ) -> None:
        super().__init__()
        width, tree = shape.width, shape.tree
        check_heads("multihead", heads, width)
        check_at_least("multihead.queries", queries, 1)
        check_at_least("multihead.layers", layers, 0)
        self.slots, self.residual = tree.slots, residual
        self.child_embed = nn.Parameter(torch.randn(tree.block_size * tree.slots, width) * 0.02)
        self.lod_embed = nn.Parameter(torch.randn(tree.levels, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.pool = HeadPooling(width, heads, tree.slots, queries)
        self.head = gist_head(head, width, queries)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables of indices."""
        return group_parameters(self, embedding=[self.child_embed, self.lod_embed])

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """children [B, nodes, C, D] -> [B, nodes, G, D]."""
        sequences, nodes, count, width = children.shape
        x = rms_norm(children).flatten(0, 1) + self.child_embed[:count] + self.lod_embed[lod - 1]
        for layer in self.layers:
            x = layer(x)
        gists: Tensor = self.head(rms_norm(self.pool(x))).view(sequences, nodes, self.slots, width)
        return gists + rms_norm(slot_means(children, self.slots)) if self.residual else gists
