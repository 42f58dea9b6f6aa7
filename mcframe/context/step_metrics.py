"""What a step reports: sums on the device, read by nobody before the logging interval ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepMetrics:
    """Detached figures of one micro-batch.

    means    name -> [2]: sum and count, pooled over micro-batches, ranks and the logging interval
    sums     name -> scalar, added up over micro-batches, ranks and the logging interval
    samples  name -> [n]: one value a variant or a pair, NaN where undefined; n is the same everywhere
    moments  name -> [6] float64: n, Σx, Σy, Σx², Σy², Σxy, read back as Pearson's correlation
    counts   name -> int64 of any shape, added up over micro-batches, ranks and the logging interval
    points   name -> [n, columns] float64, of which those with the highest first column are kept
    """

    means: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: StepMetrics) -> StepMetrics:
        return StepMetrics(
            means=self.means | other.means,
            samples=self.samples | other.samples,
            moments=self.moments | other.moments,
            sums=self.sums | other.sums,
            counts=self.counts | other.counts,
            points=self.points | other.points,
        )


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """[2]: sum of `values` where `mask`, and how many there are. A value outside the mask may be anything."""
    kept = torch.where(mask, values.detach().float(), 0.0)
    return torch.stack((kept.sum(), mask.sum().float()))


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean of `values` over `dim` where `mask`; 0 where nothing is left. Differentiable in `values`."""
    count = mask.sum(dim=dim)
    return torch.where(mask, values, 0.0).sum(dim=dim) / count.clamp(min=1)


def moments(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """[6] float64: n, Σx, Σy, Σx², Σy², Σxy over `mask`."""
    x = torch.where(mask, x.detach().double(), 0.0)
    y = torch.where(mask, y.detach().double(), 0.0)
    n = mask.sum().double()
    return torch.stack((n, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()))


def pearson(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension where `mask`; NaN where it is undefined. float64."""
    n = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    dx = torch.where(mask, x.detach().double(), 0.0)
    dy = torch.where(mask, y.detach().double(), 0.0)
    dx = torch.where(mask, dx - dx.sum(dim=-1, keepdim=True) / n, 0.0)
    dy = torch.where(mask, dy - dy.sum(dim=-1, keepdim=True) / n, 0.0)
    spread = dx.square().sum(dim=-1) * dy.square().sum(dim=-1)
    return torch.where(spread > 1e-24, (dx * dy).sum(dim=-1) / spread.clamp(min=1e-24).sqrt(), torch.nan)
