"""GistNet that encodes a window of earlier blocks, then pools block by block.

The meaning of a block depends on the text before it: a name defined earlier, a pronoun, a key whose value follows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mcframe.bounds import NonNegativeInt, Size, SizeOrZero
from mcframe.context.substitutions import slot_means
from mcframe.errors import require
from mcframe.hookspecs import ModelShape
from mcframe_plugins.gistnet.pooling import Head, HeadPooling, PooledGistNet, gist_head
from mcframe_plugins.layers import Layer, rms_norm, rotation


class ContextualGistNet(PooledGistNet):
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
        layers: SizeOrZero = 2,
        heads: Size = 4,
        window: NonNegativeInt = 2,
        pooling: Literal["mean", "query", "heads"] = "mean",
        queries: Size = 4,
        head: Head = "mlp",
        residual: bool = True,
        base_layer: SizeOrZero = 0,
        from_tokens: bool = True,
    ) -> None:
        gin = "gistnet.contextual"
        require(layers != 0 or base_layer != 0, f"{gin}.layers", layers, f"1 or more without {gin}.base_layer")
        width, tree = shape.width, shape.tree
        children = tree.block_size * (1 if from_tokens else tree.slots)
        super().__init__(
            "contextual", shape, layers=layers, heads=heads, children=children, residual=residual,
            slot_table=pooling == "query",
        )  # fmt: skip
        self.context_blocks = None if base_layer else layers * window
        self.reads_layer, self.reads_tokens = base_layer, from_tokens
        self.masks_documents = layers * window == 0
        self.block_size, self.head_width = tree.block_size, width // heads
        self.window, self.pooling = window, pooling
        if pooling == "query":
            self.pool: nn.Module = Layer(width, heads)
        elif pooling == "heads":
            self.pool = HeadPooling(width, heads, tree.slots, queries)
        self.head = gist_head(head, width, queries if pooling == "heads" else 1)

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of children [B, nodes, C, D]."""
        sequences, nodes, count, width = children.shape
        states = self._encode(children.flatten(1, 2), lod, self.block_size if self.reads_tokens else count)
        states = states.reshape(sequences * nodes, count, width)
        if self.pooling == "mean":
            pooled = slot_means(states, self.slots)
        elif self.pooling == "query":
            pooled = self.pool(self.slot_queries(states.shape[0]), memory=states)
        else:
            pooled = self.pool(states)
        return self.gists(pooled, children)

    def _encode(self, children: Tensor, lod: int, block: int) -> Tensor:
        """Return the states [B, n, D] of all children [B, n, D] of a sequence, in blocks of `block`, in one pass."""
        count = children.shape[1]
        x = rms_norm(children) + self.child_embed[:block].repeat(count // block, 1) + self.lod_embed[lod - 1]
        mask = block_mask(count, block, self.window, x.device)
        angles = rotation(count, self.head_width, x.device)
        for layer in self.layers:
            x = layer(x, mask=mask, angles=angles)
        return x


def block_mask(count: int, block: int, window: NonNegativeInt, device: torch.device) -> Tensor:
    """Return a mask [count, count] by which child q may read the blocks from `window` before its own to its own."""
    number = torch.arange(count, device=device) // block
    back = number[:, None] - number
    return (back >= 0) & (back <= window)
