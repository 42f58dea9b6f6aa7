"""Base of the GistNets that encode the children of a block and pool them; pooling by several heads."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.context.substitutions import slot_means
from mcframe.errors import require
from mcframe.hookspecs import GistNet, ModelShape, ParamGroup, TrainableModule, group_parameters
from mcframe_plugins.layers import Layer, rms_norm

Head = Literal["linear", "mlp"]


class PooledGistNet(GistNet):
    """Tables of children and levels, transformer layers, a pool and a head, with an optional residual.

    A subclass sets `head`, and before it the modules of its pool.

    Args:
        name: Its name in gin files, for errors.
        shape: Width and tree of the model.
        layers: Transformer layers.
        heads: Attention heads of a layer.
        children: Rows of the table of children.
        residual: Whether the mean of the children is added to a gist.
        slot_table: Whether there is a learned vector for each slot.
    """

    head: nn.Module

    def __init__(
        self, name: str, shape: ModelShape, *, layers: int, heads: int, children: int, residual: bool, slot_table: bool
    ) -> None:
        super().__init__()
        width, tree = shape.width, shape.tree
        divides = heads >= 1 and width % heads == 0
        require(divides, f"gistnet.{name}.heads", heads, f"a divisor of gpt.width, {width}")
        self.slots, self.residual = tree.slots, residual
        self.child_embed = nn.Parameter(torch.randn(children, width) * 0.02)
        self.lod_embed = nn.Parameter(torch.randn(tree.levels, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.slot_embed = nn.Parameter(torch.randn(tree.slots, width) * 0.02) if slot_table else None

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables of indices."""
        return group_parameters(self, embedding=[self.child_embed, self.lod_embed, self.slot_embed])

    def embed(self, children: Tensor, lod: int) -> Tensor:
        """Return the first states [B * nodes, C, D] of children [B, nodes, C, D], block by block."""
        return rms_norm(children).flatten(0, 1) + self.child_embed[: children.shape[2]] + self.lod_embed[lod - 1]

    def slot_queries(self, count: int) -> Tensor:
        """Return the learned vectors of the slots for `count` blocks [count, G, D]."""
        assert self.slot_embed is not None
        return self.slot_embed.expand(count, -1, -1)

    def gists(self, pooled: Tensor, children: Tensor) -> Tensor:
        """Return gists [B, nodes, G, D] of pooled states [B * nodes, G, ...] and children [B, nodes, C, D]."""
        sequences, nodes, _, width = children.shape
        gists: Tensor = self.head(rms_norm(pooled)).view(sequences, nodes, self.slots, width)
        # Token embeddings are small; the residual is scaled like the head's output, to unit mean square.
        return gists + rms_norm(slot_means(children, self.slots)) if self.residual else gists


class HeadPooling(TrainableModule):
    """Learned queries read a block's children; every head has a softmax of its own and its own slice of the width.

    One softmax makes one weighted mean of the children. Several queries of several heads can select as many different
    children. The following map treats each read separately, because the reads are concatenated, so that several pairs
    of key and value fit into a gist without being confused. (Attention pooling by learned queries: Lee et al., Set
    Transformer, 2019.)
    """

    def __init__(self, width: int, heads: int, slots: int, queries: int) -> None:
        super().__init__()
        self.heads, self.slots = heads, slots
        # Not normalised: the length of a query determines how sharp its softmax is.
        self.query_embed = nn.Parameter(torch.randn(heads, slots * queries, width // heads))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: queries are a table."""
        return group_parameters(self, embedding=[self.query_embed])

    def forward(self, states: Tensor) -> Tensor:
        """Return reads [N, slots, queries * W] of states [N, C, W]."""
        normed = rms_norm(states)
        key, value = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in (self.key, self.value)
        )
        query = self.query_embed.expand(states.shape[0], -1, -1, -1)
        reads = F.scaled_dot_product_attention(query, rms_norm(key), value)
        return reads.transpose(1, 2).reshape(states.shape[0], self.slots, -1)


def gist_head(kind: Head, width: int, reads: int = 1) -> nn.Module:
    """Return the map from `reads` concatenated states [..., reads * width] to a gist [..., width]."""
    if kind == "linear":
        return nn.Linear(reads * width, width, bias=False)
    hidden = width * min(reads, 2)
    return nn.Sequential(nn.Linear(reads * width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))
