"""How a block's states become its gist: reads by several heads, and the map to the slot; with checks of parameters."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.errors import UserError
from mcframe.hookspecs import ParamGroup, TrainableModule, group_parameters
from mcframe_plugins.layers import rms_norm

Head = Literal["linear", "mlp"]


class HeadPooling(TrainableModule):
    """Learned queries read a block's children; every head has a softmax of its own and its own slice of the width.

    One softmax gives one blend of the children. `queries` of them a slot, each of `heads` heads, can pick that many
    different children, and since the reads lie side by side the map behind them treats each by itself: what it adds
    up to in the slot says which read brought what, so that several pairs of key and value fit without being confused.
    (Attention pooling by learned queries: Lee et al., Set Transformer, 2019.)
    """

    def __init__(self, width: int, heads: int, slots: int, queries: int) -> None:
        super().__init__()
        self.heads, self.slots = heads, slots
        # Not normalised: a query's length says how sharp its softmax is.
        self.query_embed = nn.Parameter(torch.randn(heads, slots * queries, width // heads))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: queries are a table."""
        return group_parameters(self, embedding=[self.query_embed])

    def forward(self, states: Tensor) -> Tensor:
        """States [N, C, W] -> reads [N, slots, queries * W]."""
        normed = rms_norm(states)
        key, value = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in (self.key, self.value)
        )
        query = self.query_embed.expand(states.shape[0], -1, -1, -1)
        reads = F.scaled_dot_product_attention(query, rms_norm(key), value)
        return reads.transpose(1, 2).reshape(states.shape[0], self.slots, -1)


def gist_head(kind: Head, width: int, reads: int = 1) -> nn.Module:
    """The map from `reads` pooled states side by side [..., reads * width] to a gist [..., width]."""
    if kind == "linear":
        return nn.Linear(reads * width, width, bias=False)
    hidden = width * min(reads, 2)
    return nn.Sequential(nn.Linear(reads * width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))


def check_heads(name: str, heads: int, width: int) -> None:
    """Raise UserError unless the width divides into that many heads."""
    if heads < 1 or width % heads:
        raise UserError(
            f"gistnet.{name}.heads = {heads} does not divide the model's width of {width}",
            binding=f"gistnet.{name}.heads",
            remedy="choose a number of heads that divides gpt.width",
        )


def check_at_least(binding: str, value: int, least: int) -> None:
    """Raise UserError where a number is too small."""
    if value < least:
        raise UserError(
            f"gistnet.{binding} is {value}; it must be at least {least}",
            binding=f"gistnet.{binding}",
            remedy="choose a larger number",
        )
