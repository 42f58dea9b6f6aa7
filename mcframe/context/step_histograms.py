"""What a step counts for pictures: distributions, detail by place, and a sample of spans. All of it on the device.

Counts add up over micro-batches, ranks and time, whatever their order. The sample is drawn by priorities that are
hashes of what a span belongs to, so that it is the same sample however a batch is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mcframe.context.counter_rng import hash_combine
from mcframe.context.delta_nll import PairedNLL, span_delta
from mcframe.context.step_metrics import StepMetrics, masked_mean
from mcframe.context.working_context import WorkingContext

SPANS = 64
"""Spans of a logging interval that are kept, over all ranks."""

ABSENT = -1.0
"""The priority of what is no span."""

_SPAN_SALT = 3 << 48


@dataclass(frozen=True)
class Scale:
    """Bins of a histogram: equally wide from `low` to `high`, or where `fine` is given equally wide in asinh(x / fine).

    Such bins are fine near 0 and coarse far from it. The outer ones also hold what lies beyond.
    """

    low: float
    high: float
    bins: int
    fine: float | None = None

    @property
    def edges(self) -> list[float]:
        """bins + 1 of them, ascending."""
        return list(_edges(self))

    def counted(self, values: Tensor, mask: Tensor, group: Tensor | None = None, groups: int = 1) -> Tensor:
        """How many of `values` lie in each bin where `mask`, for each group -> int64 [groups, bins].

        values, mask, group (from 0 below `groups`; None: one for all) are of one shape. NaN counts in the last bin.
        """
        inner = self._all(torch.arange(1, self.bins, device=values.device, dtype=torch.float32))
        place = torch.bucketize(values.detach().float(), inner, right=True)
        if group is not None:
            place = place + group * self.bins
        counts = torch.zeros(groups * self.bins, dtype=torch.long, device=values.device)
        return counts.scatter_add_(0, place.flatten(), mask.flatten().long()).view(groups, self.bins)

    def _all(self, numbers: Tensor) -> Tensor:
        """The edges of these numbers, 0 to bins. The middle one of a symmetric scale is exactly 0."""
        if self.fine is None:
            return self.low + (self.high - self.low) * (numbers / self.bins)
        low, high = math.asinh(self.low / self.fine), math.asinh(self.high / self.fine)
        return torch.sinh(low + (high - low) * (numbers / self.bins)) * self.fine


@lru_cache
def _edges(scale: Scale) -> tuple[float, ...]:
    exact = scale._all(torch.arange(scale.bins + 1, dtype=torch.float64))
    return tuple(float(f"{edge:.4g}") for edge in exact.tolist())


SCORES = Scale(-1.0, 1.0, 40)
NATS = Scale(-20.0, 20.0, 61, fine=0.05)
"""0 lies in the middle of a bin: "no worse and no better"."""

SCALES = {"mc/lens_score": SCORES, "mc/entry_delta": NATS, "mc/variant_delta": NATS}
"""The distributions that are counted; what else `StepMetrics.counts` holds counts blocks."""


def blocks_by_lod(focus: Tensor, levels: int) -> Tensor:
    """In how many of the focuses [R, blocks] each block is at each LOD -> int64 [levels + 1, blocks]."""
    counts = torch.zeros(levels + 1, focus.shape[1], dtype=torch.long, device=focus.device)
    return counts.scatter_add_(0, focus, torch.ones_like(focus))


def context_tallies(pairing: PairedNLL) -> StepMetrics:
    """Where variants are compressed, and how ΔNLL is distributed: of their entries by LOD, and of whole variants."""
    context, delta = pairing.context, pairing.delta.detach()
    levels = context.tree.levels
    # Entries before the first gist are the baseline's own: they cannot differ.
    differ = pairing.loss_mask & (pairing.nearest >= 0)
    return StepMetrics(
        counts={
            "mc/blocks/variants": blocks_by_lod(context.focus, levels),
            "mc/entry_delta": NATS.counted(delta, differ, context.lod, levels + 1),
            "mc/variant_delta": NATS.counted(masked_mean(delta, differ, dim=1), differ.any(dim=1)),
        }
    )


def lens_tallies(scores: Tensor, context: WorkingContext, pairing: PairedNLL, seeds: Tensor) -> StepMetrics:
    """How LensNet's scores are distributed by LOD, and a sample of collapsed spans: (priority, score, ΔNLL, LOD).

    scores [R, Lc] belong to `context`, the entries before the cursor; seeds [B, V]. A span's ΔNLL is that of the tokens
    less than H behind it, as in `mc/lod_delta`; spans that nothing scored follows are left out.
    """
    levels, cut = context.tree.levels, context.length
    delta, followers = (part[:, :cut] for part in span_delta(pairing))
    priority = (hash_combine(hash_combine(seeds.reshape(-1, 1), _SPAN_SALT), context.token) & (2**53 - 1)).double()
    priority = torch.where((followers > 0) & (context.lod > 0), priority, ABSENT)
    spans = torch.stack((priority, scores.detach().double(), delta.double(), context.lod.double()), dim=-1)
    return StepMetrics(
        counts={"mc/lens_score": SCORES.counted(scores, context.valid, context.lod, levels + 1)},
        points={"mc/spans": foremost(spans.flatten(0, 1))},
    )


def foremost(points: Tensor) -> Tensor:
    """The `SPANS` points [n, columns] of the highest priorities, their first column -> [up to SPANS, columns]."""
    return points[points[:, 0].topk(min(SPANS, points.shape[0])).indices]
