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


def document_mask(document: Tensor | None) -> Tensor | None:
    """Return which entries an entry may read, bool [R, 1, L, L]: those up to itself of its own document.

    Args:
        document: Of each entry [R, L] (`WorkingContext.document`). Without documents None is returned.
    """
    if document is None:
        return None
    return (document[:, None, :, None] == document[:, None, None, :]).tril()


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Causal attention of the last entries [R, H, n, W] to all entries [R, H, L, W], n up to L.

    `mask` is that of `document_mask`, or None.
    """
    new, total = query.shape[2], key.shape[2]
    if mask is not None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    mask = causal_mask(new, total, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=new == total, scale=scale)
