"""Gaussian rotary positions.

A token stands at one place; a gist stands for an interval. Its rotation is the expectation over a Gaussian with the
interval's mean and variance: `cos(f * mu) * exp(-(sigma * f)**2 / 2)`, likewise sin, for each frequency f. With
sigma = 0 this is RoPE (Su et al., RoFormer, 2021); the damping is the characteristic function of the Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_rotation(
    mu: Tensor, sigma: Tensor, head_width: int, *, base: float = 10_000.0, smoothing: bool = True
) -> tuple[Tensor, Tensor]:
    """Damped cosines and sines for positions mu, sigma [R, L] in tokens -> two of [R, 1, L, head_width / 2], float32.

    Angles are computed in float32 whatever the model's precision: bf16 cannot tell position 2,047 from 2,048.
    """
    exponent = torch.arange(0, head_width, 2, dtype=torch.float32, device=mu.device) / head_width
    frequency = torch.pow(base, -exponent)
    angle = mu.float()[:, None, :, None] * frequency
    cosine, sine = angle.cos(), angle.sin()
    if smoothing:
        damping = torch.exp(-0.5 * (sigma.float()[:, None, :, None] * frequency) ** 2)
        cosine, sine = cosine * damping, sine * damping
    return cosine, sine


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_width / 2) of x [R, H, L, head_width]."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
