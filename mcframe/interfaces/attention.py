"""Rotation and causal attention, as every base model needs them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_width / 2) of x [R, H, L, head_width]."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


def causal_mask(new: int, total: int, device: torch.device) -> Tensor | None:
    """Return which of all entries the last entries may read [new, total], bool; None where attention needs no mask."""
    if not 1 < new < total:
        return None
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Causal attention of the last entries [R, H, n, W] to all entries [R, H, L, W], n up to L."""
    new, total = query.shape[2], key.shape[2]
    mask = causal_mask(new, total, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=new == total, scale=scale)
