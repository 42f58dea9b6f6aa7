"""The transformer layer of first-party GistNets and LensNets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of every position, float32 [positions, head width // 2] each."""


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension, without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


def rotation(count: int, head_width: int, device: torch.device, *, base: float = 1000.0) -> Rotation:
    """Return the angles of `count` positions.

    Only differences of positions matter, so the length of a sequence is not fixed. The longest wavelength, 2 pi * base
    positions, exceeds the few hundred positions of a window.
    """
    pairs = head_width // 2
    frequency = torch.pow(base, -torch.arange(pairs, dtype=torch.float32, device=device) / max(pairs, 1))
    angle = torch.arange(count, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angles: Rotation) -> Tensor:
    """Rotate pairs (i, i + half) of x [N, H, positions, head width]; the last one of an odd width is unchanged."""
    half = x.shape[-1] // 2
    cosine, sine = (part.to(x.dtype) for part in angles)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine, rest), dim=-1)


class Layer(nn.Module):
    """Bidirectional attention and a squared-ReLU network four times as wide, pre-norm, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        angles: Rotation | None = None,
    ) -> Tensor:
        """Return states [N, C, W].

        Args:
            x: States [N, C, W] that attend.
            memory: States [N, M, W] that are attended to. Default: x.
            mask: Permitted pairs, bool, broadcast to [N, heads, C, M].
            angles: Rotations of queries and keys by their positions, for self-attention.
        """
        normed = rms_norm(x)
        source = normed if memory is None else rms_norm(memory)
        query, key, value = (
            projection(read).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, read in ((self.query, normed), (self.key, source), (self.value, source))
        )
        query, key = rms_norm(query), rms_norm(key)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.relu(self.up(rms_norm(x))).square())
        return out
