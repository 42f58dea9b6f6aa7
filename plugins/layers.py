"""The transformer layer that first-party GistNets and LensNets are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension, without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


class Layer(nn.Module):
    """Attention that looks both ways and a squared-ReLU network four times as wide, pre-norm, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, *, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [N, C, W] attends to memory [N, M, W] (itself by default) where mask [N, 1, 1, M] allows -> [N, C, W]."""
        normed = rms_norm(x)
        source = normed if memory is None else rms_norm(memory)
        query, key, value = (
            projection(read).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, read in ((self.query, normed), (self.key, source), (self.value, source))
        )
        mixed = F.scaled_dot_product_attention(rms_norm(query), rms_norm(key), value, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.relu(self.up(rms_norm(x))).square())
        return out
