"""GistNet that encodes a window of earlier blocks, then pools block by block.

The meaning of a block depends on the text before it: a name defined earlier, a pronoun, a key whose value follows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mcframe.context.substitutions import slot_means
from mcframe.errors import UserError
from mcframe.hookspecs import GistNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.gistnet.pooling import Head, HeadPooling, check_at_least, check_heads, gist_head
from mcframe_plugins.layers import Layer, rms_norm, rotation


class ContextualGistNet(GistNet):
    """An encoder over a window of earlier blocks, or the base model's own states, pooled block by block.

    A child of block i reads the children of blocks `i - window` to i, so a gist reads `layers * window` blocks to its
    left; with base_layer, everything to its left. The attention is masked: its cost grows with T**2.

    Source:
        LCLM (arXiv 2606.09659): an encoder over several chunks; pooled contextual states (arXiv 2510.20797).

    Args:
        layers: Encoder layers; 0 pools the base model's states and needs base_layer.
        heads: Attention heads; must divide `gpt.width`.
        window: Blocks to the left that one layer may read.
        pooling: mean: over each slot's children. query: a learned query a slot. heads: several queries a slot, as in
            `multihead`.
        queries: Queries a slot with pooling = 'heads'.
        head: Map from the pooled state to the gist.
        residual: Add the mean of the children's embeddings, so that training starts near the `mean` GistNet.
        base_layer: Children are the base model's states after that many of its blocks; 0 = embeddings.
        from_tokens: Pool gists of every level from the states of tokens, for one more pass of the encoder a level;
            False = from the gists one level below.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        layers: int = 2,
        heads: int = 4,
        window: int = 2,
        pooling: Literal["mean", "query", "heads"] = "mean",
        queries: int = 4,
        head: Head = "mlp",
        residual: bool = True,
        base_layer: int = 0,
        from_tokens: bool = True,
    ) -> None:
        super().__init__()
        width, tree = shape.width, shape.tree
        _check(layers, window, queries, base_layer)
        check_heads("contextual", heads, width)
        self.context_blocks = None if base_layer else layers * window
        self.reads_layer, self.reads_tokens = base_layer, from_tokens
        self.slots, self.block_size, self.head_width = tree.slots, tree.block_size, width // heads
        self.window, self.pooling, self.residual = window, pooling, residual
        children = tree.block_size * (1 if from_tokens else tree.slots)
        self.child_embed = nn.Parameter(torch.randn(children, width) * 0.02)
        self.lod_embed = nn.Parameter(torch.randn(tree.levels, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.slot_embed = nn.Parameter(torch.randn(tree.slots, width) * 0.02) if pooling == "query" else None
        if pooling == "query":
            self.pool: nn.Module = Layer(width, heads)
        elif pooling == "heads":
            self.pool = HeadPooling(width, heads, tree.slots, queries)
        self.head = gist_head(head, width, queries if pooling == "heads" else 1)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables of indices."""
        return group_parameters(self, embedding=[self.child_embed, self.lod_embed, self.slot_embed])

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """children [B, nodes, C, D] -> [B, nodes, G, D]."""
        sequences, nodes, count, width = children.shape
        states = self._encode(children.flatten(1, 2), lod, self.block_size if self.reads_tokens else count)
        states = states.reshape(sequences * nodes, count, width)
        if self.pooling == "mean":
            pooled = slot_means(states, self.slots)
        elif self.pooling == "query":
            pooled = self.pool(self.slot_embed.expand(states.shape[0], -1, -1), memory=states)
        else:
            pooled = self.pool(states)
        gists: Tensor = self.head(rms_norm(pooled)).view(sequences, nodes, self.slots, width)
        return gists + rms_norm(slot_means(children, self.slots)) if self.residual else gists

    def _encode(self, children: Tensor, lod: int, block: int) -> Tensor:
        """States [B, n, D] of all the children [B, n, D] of the sequence, in blocks of `block`, in one pass."""
        count = children.shape[1]
        places = self.child_embed[:block].repeat(count // block, 1)
        x = rms_norm(children) + places + self.lod_embed[lod - 1]
        mask = block_mask(count, block, self.window, x.device)
        angles = rotation(count, self.head_width, x.device)
        for layer in self.layers:
            x = layer(x, mask=mask, angles=angles)
        return x


def block_mask(count: int, block: int, window: int, device: torch.device) -> Tensor:
    """[count, count] bool: child q may read child k, since k stands in q's block or in one of `window` before it."""
    number = torch.arange(count, device=device) // block
    back = number[:, None] - number
    return (back >= 0) & (back <= window)


def _check(layers: int, window: int, queries: int, base_layer: int) -> None:
    check_at_least("contextual.base_layer", base_layer, 0)
    check_at_least("contextual.layers", layers, 0)
    check_at_least("contextual.window", window, 0)
    check_at_least("contextual.queries", queries, 1)
    if layers == 0 and base_layer == 0:
        raise UserError(
            "gistnet.contextual.layers is 0 and base_layer too: a gist would read nothing to its left",
            binding="gistnet.contextual.layers",
            remedy="give it layers, or set gistnet.contextual.base_layer to pool the base model's states",
        )
