"""Metrics of one micro-batch as sums on the device, and the masked reductions that make them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepMetrics:
    """Detached metrics of one micro-batch, each in the field that declares its reduction.

    `mcframe.metrics.accumulator.Accumulator` reduces them over micro-batches, ranks and the logging interval.

    Attributes:
        means: name -> [2], a sum and its count; the quotient of the totals is logged.
        roots: name -> [2], a sum of squares and its count; the root of the quotient of the totals is logged.
        sums: name -> scalar, added up.
        samples: name -> [n], one value a variant or a pair, NaN where undefined; n is the same on every rank. The
            catalogue of metrics names the reductions: `mc/adv_delta_p95` is the 95th percentile of `mc/adv_delta`.
        moments: name -> [6] float64: n, Σx, Σy, Σx², Σy², Σxy; Pearson's correlation is logged.
        counts: name -> int64 of any shape, added up.
        points: name -> [n, columns] float64; those with the highest first column are kept.
    """

    means: dict[str, Tensor] = field(default_factory=dict)
    roots: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: StepMetrics) -> StepMetrics:
        return StepMetrics(**{each.name: getattr(self, each.name) | getattr(other, each.name) for each in fields(self)})


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return [2]: the sum of `values` where `mask`, and their number. Values outside the mask may be NaN."""
    kept = torch.where(mask, values.detach().float(), 0.0)
    return torch.stack((kept.sum(), mask.sum().float()))


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return the mean of `values` over `dim` where `mask`; 0 if the mask is empty. Differentiable in `values`."""
    count = mask.sum(dim=dim)
    return torch.where(mask, values, 0.0).sum(dim=dim) / count.clamp(min=1)


def moments(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return [6] float64: n, Σx, Σy, Σx², Σy², Σxy over `mask`."""
    x = torch.where(mask, x.detach().double(), 0.0)
    y = torch.where(mask, y.detach().double(), 0.0)
    n = mask.sum().double()
    return torch.stack((n, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()))


def pearson(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return Pearson's correlation over the last dimension where `mask`, float64; NaN where it is undefined."""
    n = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    dx = torch.where(mask, x.detach().double(), 0.0)
    dy = torch.where(mask, y.detach().double(), 0.0)
    dx = torch.where(mask, dx - dx.sum(dim=-1, keepdim=True) / n, 0.0)
    dy = torch.where(mask, dy - dy.sum(dim=-1, keepdim=True) / n, 0.0)
    spread = dx.square().sum(dim=-1) * dy.square().sum(dim=-1)
    return torch.where(spread > 1e-24, (dx * dy).sum(dim=-1) / spread.clamp(min=1e-24).sqrt(), torch.nan)
