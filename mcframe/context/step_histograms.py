"""Histograms of a step, counts of blocks by LOD, and a sample of gist spans, all on the device.

Counts are added up over micro-batches, ranks and time. The sample is drawn by priorities, which are hashes of a span's
sequence and position; it is the same sample for any micro-batch size and any number of ranks.
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

MAX_POINTS = 64
"""Points of a logging interval that are kept, over all ranks."""

NO_POINT = -1.0
"""The priority of a row that holds no point."""

_SPAN_SALT = 3 << 48


@dataclass(frozen=True)
class HistogramBins:
    """Bins of a histogram. The outer bins also hold the values beyond them.

    Attributes:
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        bins: number of bins.
        linear_width: None for bins of equal width; else bins of equal width in asinh(x / linear_width), which are
            narrow near 0 and wide far from it.
    """

    low: float
    high: float
    bins: int
    linear_width: float | None = None

    @property
    def edges(self) -> list[float]:
        """The bins + 1 edges, ascending, rounded to four digits."""
        return list(_rounded_edges(self))

    def count(self, values: Tensor, mask: Tensor, group: Tensor | None = None, groups: int = 1) -> Tensor:
        """Return the number of values in each bin, for each group.

        Args:
            values: any shape; NaN counts in the last bin.
            mask: shape of `values`; True where a value counts.
            group: shape of `values`, from 0 to groups - 1; None for a single group.
            groups: number of groups.

        Returns:
            int64 [groups, bins].
        """
        inner = self._edges_at(torch.arange(1, self.bins, device=values.device, dtype=torch.float32))
        index = torch.bucketize(values.detach().float(), inner, right=True)
        if group is not None:
            index = index + group * self.bins
        counts = torch.zeros(groups * self.bins, dtype=torch.long, device=values.device)
        return counts.scatter_add_(0, index.flatten(), mask.flatten().long()).view(groups, self.bins)

    def _edges_at(self, numbers: Tensor) -> Tensor:
        """Return the edges of these numbers, 0 to bins; the middle edge of symmetric bins is exactly 0."""
        if self.linear_width is None:
            return self.low + (self.high - self.low) * (numbers / self.bins)
        low, high = math.asinh(self.low / self.linear_width), math.asinh(self.high / self.linear_width)
        return torch.sinh(low + (high - low) * (numbers / self.bins)) * self.linear_width


@lru_cache
def _rounded_edges(bins: HistogramBins) -> tuple[float, ...]:
    exact = bins._edges_at(torch.arange(bins.bins + 1, dtype=torch.float64))
    return tuple(float(f"{edge:.4g}") for edge in exact.tolist())


SCORE_BINS = HistogramBins(-1.0, 1.0, 40)
NATS_BINS = HistogramBins(-20.0, 20.0, 61, linear_width=0.05)
"""0 lies in the middle of a bin, which therefore holds the entries that compression does not change."""

HISTOGRAMS = {"mc/lens_score": SCORE_BINS, "mc/entry_delta": NATS_BINS, "mc/variant_delta": NATS_BINS}
"""Names in `StepMetrics.counts` that are histograms, with their bins; other names count blocks."""


def blocks_by_lod(focus: Tensor, levels: int) -> Tensor:
    """Return the number of focuses [R, blocks] that have each block at each LOD, int64 [levels + 1, blocks]."""
    counts = torch.zeros(levels + 1, focus.shape[1], dtype=torch.long, device=focus.device)
    return counts.scatter_add_(0, focus, torch.ones_like(focus))


def context_histograms(pairing: PairedNLL) -> StepMetrics:
    """Return blocks of the variants by LOD, and histograms of ΔNLL: of entries by LOD, and of means of variants."""
    context, delta = pairing.context, pairing.delta.detach()
    levels = context.tree.levels
    # Entries before the first gist equal the baseline's and would dilute the histograms.
    differ = pairing.loss_mask & (pairing.nearest >= 0)
    return StepMetrics(
        counts={
            "mc/blocks/variants": blocks_by_lod(context.focus, levels),
            "mc/entry_delta": NATS_BINS.count(delta, differ, context.lod, levels + 1),
            "mc/variant_delta": NATS_BINS.count(masked_mean(delta, differ, dim=1), differ.any(dim=1)),
        }
    )


def lens_histograms(scores: Tensor, context: WorkingContext, pairing: PairedNLL, seeds: Tensor) -> StepMetrics:
    """Return a histogram of LensNet's scores by LOD, and a sample of gist spans.

    Args:
        scores: [R, Lc], scores of `context`.
        context: the entries before the cursor.
        pairing: the variants with their baseline; a span's ΔNLL is that of `mc/lod_delta`.
        seeds: [B, V], seeds of the variants, from which the priorities of spans are derived.

    Returns:
        counts `mc/lens_score` and points `mc/spans` [up to MAX_POINTS, 4]: priority, score, ΔNLL in nats, LOD. A span
        without a scored token after it has the priority NO_POINT.
    """
    levels, cut = context.tree.levels, context.length
    delta, followers = (part[:, :cut] for part in span_delta(pairing))
    priority = (hash_combine(hash_combine(seeds.reshape(-1, 1), _SPAN_SALT), context.token) & (2**53 - 1)).double()
    priority = torch.where((followers > 0) & (context.lod > 0), priority, NO_POINT)
    spans = torch.stack((priority, scores.detach().double(), delta.double(), context.lod.double()), dim=-1)
    return StepMetrics(
        counts={"mc/lens_score": SCORE_BINS.count(scores, context.valid, context.lod, levels + 1)},
        points={"mc/spans": top_points(spans.flatten(0, 1))},
    )


def top_points(points: Tensor) -> Tensor:
    """Return the points [n, columns] with the highest first column, at most MAX_POINTS, in descending order."""
    return points[points[:, 0].topk(min(MAX_POINTS, points.shape[0])).indices]
