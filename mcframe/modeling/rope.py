"""Gaussian rotary positions.

A token has one position; a gist covers an interval. Its rotation is the expectation over a Gaussian with the
interval's mean and variance: `cos(f * mu) * exp(-(sigma * f)**2 / 2)`, likewise sin, for each frequency f. With
sigma = 0 this is RoPE (Su et al., RoFormer, 2021); the damping is the characteristic function of the Gaussian.
"""

from __future__ import annotations

import functools
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import HeadShape, Positions

Base = Annotated[float, Field(gt=1)]


class GaussianRope(Positions):
    """Rotary positions of intervals: a token has one position, a gist the mean and the spread of its span.

    The rotation is its expectation over a Gaussian: `cos(f * mu) * exp(-(sigma * f)**2 / 2)`, likewise sin, for each
    frequency f. With sigma = 0 this is RoPE.

    Source:
        RoPE (Su et al., RoFormer, 2021).

    Args:
        base: Base of the rotary frequencies; the longest wavelength is 2 pi times this, in tokens. None = the
            frequencies of a pretrained base model, else 10,000.
        placement: Position of a gist in the span that it covers.
        smoothing: Damp the rotation of a gist by the spread of its span.
    """

    def __init__(
        self,
        shape: HeadShape,
        *,
        base: Base | None = None,
        placement: Literal["centre", "start", "end"] = "centre",
        smoothing: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.frequencies = shape.width, shape.frequencies if base is None else None
        self.base = 10_000.0 if base is None else base
        self.placement, self.smoothing = placement, smoothing

    def forward(self, context: WorkingContext) -> tuple[Tensor, Tensor]:
        """Entries [R, L] -> cosine, sine [R, 1, L, width / 2], float32."""
        mu, sigma = context.positions(self.placement)
        return gaussian_rotation(
            mu, sigma, self.width, base=self.base, smoothing=self.smoothing, frequencies=self.frequencies
        )


@functools.lru_cache(maxsize=64)
def _on_device(frequencies: tuple[float, ...], device: torch.device) -> Tensor:
    """Return frequencies as a tensor; copied to a device once, since the copy waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(frequencies, dtype=torch.float32, device=device)


# torch.compile would trace through the cache, and build the tensor in every step.
vars(_on_device.__wrapped__)["_dynamo_marked_constant"] = True


def gaussian_rotation(
    mu: Tensor,
    sigma: Tensor,
    head_width: int,
    *,
    base: float = 10_000.0,
    smoothing: bool = True,
    frequencies: tuple[float, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Damped cosines and sines for positions mu, sigma [R, L] in tokens -> two of [R, 1, L, head_width / 2], float32.

    `frequencies`, one a pair, replace those of `base`. Angles are float32 in every precision of the model: in bf16,
    positions 2,047 and 2,048 are equal.
    """
    if frequencies is None:
        exponent = torch.arange(0, head_width, 2, dtype=torch.float32, device=mu.device) / head_width
        frequency = torch.pow(base, -exponent)
    else:
        frequency = _on_device(frequencies, mu.device)
    angle = mu.float()[:, None, :, None] * frequency
    cosine, sine = angle.cos(), angle.sin()
    if smoothing:
        damping = torch.exp(-0.5 * (sigma.float()[:, None, :, None] * frequency) ** 2)
        cosine, sine = cosine * damping, sine * damping
    return cosine, sine
