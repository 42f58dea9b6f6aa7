"""GistNet for pretrained base models: a neutral embedding, changed by pooled states of the base model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.bounds import Size
from mcframe.hookspecs import GistNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.layers import rms_norm


class AdapterGistNet(GistNet):
    """A neutral embedding, plus a small network of the base model's states, pooled by a learned query a slot.

    The network's last map starts at 0: gists start as embeddings of a newline, which the model knows. The mean of the
    embeddings, the start of the other GistNets, costs a pretrained model nats a token.

    Source:
        Pooled contextual states: arXiv 2510.20797.

    Args:
        layer: Layer of the base model whose states are pooled; states of the lower third know the context and are not
            yet predictions.
        hidden: Width of the network, relative to the base model's.
    """

    context_blocks = None
    reads_tokens = masks_documents = True

    def __init__(self, shape: ModelShape, *, layer: Size = 8, hidden: Size = 2) -> None:
        super().__init__()
        width, tree = shape.width, shape.tree
        neutral = torch.zeros(width) if shape.neutral is None else shape.neutral.float()
        self.reads_layer, self.slots = layer, tree.slots
        self.neutral_embed = nn.Parameter(neutral.expand(tree.slots, -1).clone())
        self.query_embed = nn.Parameter(torch.zeros(tree.slots, width))
        self.lod_embed = nn.Parameter(torch.zeros(tree.levels, width))
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, hidden * width)
        self.down = nn.Linear(hidden * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    @staticmethod
    def example_settings(folder: object) -> dict[str, Any]:
        """Return settings for a base model of two layers."""
        return {"layer": 1}

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables of slots and levels."""
        return group_parameters(self, embedding=[self.neutral_embed, self.query_embed, self.lod_embed])

    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Return gists [B, nodes, G, D] of the states of tokens [B, nodes, K**lod, D]."""
        normed = rms_norm(children)
        weights = torch.einsum("gd,bncd->bngc", self.query_embed, normed).softmax(dim=-1)
        pooled = self.norm(weights @ children + self.lod_embed[lod - 1])
        gists: Tensor = self.neutral_embed + self.down(F.gelu(self.up(pooled)))
        return gists
