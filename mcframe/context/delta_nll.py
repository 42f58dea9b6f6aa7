"""Paired ΔNLL: every predicting entry of a variant against the baseline at the very same target.

`delta(e) = NLL_variant(e) - NLL_baseline(end(e) - 1)` in nats. Differences are never aligned by index from the tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcframe.context.step_metrics import StepMetrics, masked_mean, masked_sum
from mcframe.context.working_context import WorkingContext

DECLARED_METRICS = {
    "mc/adv_delta_mean": ("nats", "lower", "mean delta of a variant from its first gist entry on"),
    "mc/adv_delta_p95": ("nats", "lower", "95th percentile over variants of that mean delta"),
    "mc/adv_delta_std": ("nats", "neither", "standard deviation over variants of that mean delta"),
    "mc/adv_delta_undefined": ("variants", "neither", "variants without a gist entry, excluded from adv_delta"),
    "mc/gist_entry_delta/{lod}": ("nats", "lower", "mean delta of the gist entries at this LOD"),
    "mc/lod_delta/{lod}":
        ("nats", "lower", "mean delta of LOD0 entries at most context.horizon after a span of this LOD, their nearest"),
    "mc/delta_after/{distance}":
        ("nats", "lower", "mean delta of LOD0 entries by distance to the nearest span; the bucket's upper bound"),
    "mc/tail_delta": ("nats", "lower", "mean delta after the cursor: the cost for the next tokens"),
    "mc/lod_loss/{lod}": ("nats", "lower", "mean NLL of the entries at this LOD"),
    "mc/lod_count/{lod}": ("entries", "neither", "entries at this LOD"),
    "mc/wc_length": ("entries", "neither", "entries of a working context"),
}  # fmt: skip

DISTANCES = (16, 32, 128, 512)
"""Upper bounds, in tokens after a span, of the buckets of `mc/delta_after`."""


@dataclass(frozen=True)
class PairedNLL:
    """Variants against their baseline.

    nll           [R, L] NLL of the variants' entries, in nats
    baseline_nll  [R, L] the baseline's NLL at the same target, detached
    loss_mask     [R, L] bool: the entry predicts a target, and that target counts
    nearest       [R, L] index of the nearest gist entry on the left (last slot; itself for a gist), -1 without one in
                  the entry's document
    target_mask   [R, L] bool: the entry predicts a target that counts, whether the baseline predicts it or not
    """

    context: WorkingContext
    nll: Tensor
    baseline_nll: Tensor
    loss_mask: Tensor
    nearest: Tensor
    target_mask: Tensor

    @property
    def delta(self) -> Tensor:
        """[R, L] ΔNLL in nats; undefined outside `loss_mask`."""
        return self.nll - self.baseline_nll

    @property
    def tail_mask(self) -> Tensor:
        """[R, L] bool: entries whose target is at or after the cursor; only these evaluate a focus."""
        return self.loss_mask & (self.context.end >= self.context.tree.cursor)

    def of_nearest(self, values: Tensor) -> Tensor:
        """[R, L] what `values` [R, L] holds for the nearest gist on the left; undefined where `nearest` is -1."""
        return values.gather(1, self.nearest.clamp(min=0))

    @property
    def after_gist(self) -> Tensor:
        """[R, L] bool: a token of the loss mask with a gist somewhere on its left."""
        return self.loss_mask & (self.context.lod == 0) & (self.nearest >= 0)

    @property
    def distance(self) -> Tensor:
        """[R, L] tokens between the end of the nearest span on the left and the entry (`t - end`)."""
        return self.context.token - self.of_nearest(self.context.end)


def pair_nll(
    context: WorkingContext,
    nll: Tensor,
    baseline_nll: Tensor,
    counts: Tensor | None = None,
    targets: Tensor | None = None,
) -> PairedNLL:
    """Pair the variants' NLL [R, L] with the baseline's [B, T] (position t scores token t + 1).

    counts [B, T] bool: the targets that count and that the baseline predicts; None for all.
    targets [B, T] bool: the targets that count; None for the same.
    """
    rows = context.focus.shape[0]
    repeat = rows // baseline_nll.shape[0]
    baseline = baseline_nll.detach().repeat_interleave(repeat, dim=0)
    baseline_nll = baseline.gather(1, context.end - 1)
    predicts = context.predicts

    def masked(targets: Tensor | None, otherwise: Tensor) -> Tensor:
        if targets is None:
            return otherwise
        return predicts & targets.repeat_interleave(repeat, dim=0).gather(1, context.end - 1)

    loss_mask = masked(counts, predicts)
    target_mask = masked(targets, loss_mask)
    index = torch.arange(context.length, device=nll.device).expand(rows, -1)
    marked = torch.where(predicts & (context.lod > 0), index, -1)
    nearest = marked.cummax(dim=1).values
    if (document := context.document) is not None:
        nearest = torch.where(document.gather(1, nearest.clamp(min=0)) == document, nearest, -1)
    return PairedNLL(context, nll, baseline_nll, loss_mask, nearest, target_mask)


def span_delta(pairing: PairedNLL) -> tuple[Tensor, Tensor]:
    """Mean ΔNLL of the tokens less than H after each span, each counted for its nearest span on the left.

    -> ([R, L] mean at the span's last entry, [R, L] number of tokens), 0 elsewhere.
    """
    near = pairing.after_gist & (pairing.distance < pairing.context.tree.delta_horizon)
    size = pairing.nll.shape[1]
    index = torch.where(near, pairing.nearest, size)
    zeros = pairing.nll.new_zeros(pairing.nll.shape[0], size + 1)
    total = zeros.scatter_add(1, index, pairing.delta.detach())[:, :size]
    count = zeros.scatter_add(1, index, torch.ones_like(pairing.nll))[:, :size]
    return total / count.clamp(min=1), count


def tail_delta(pairing: PairedNLL) -> Tensor:
    """[R] mean ΔNLL after the cursor, in nats. Differentiable."""
    return masked_mean(pairing.delta, pairing.tail_mask, dim=1)


def delta_metrics(pairing: PairedNLL) -> StepMetrics:
    """The metrics of docs/concepts.md that compare variants with their baseline."""
    context, delta, loss_mask = pairing.context, pairing.delta.detach(), pairing.loss_mask
    tree, lod = context.tree, context.lod
    means = {"mc/tail_delta": masked_sum(delta, pairing.tail_mask)}
    after, distance = pairing.after_gist, pairing.distance
    nearest_lod = pairing.of_nearest(lod)
    for level in range(tree.levels + 1):
        at = loss_mask & (lod == level)
        rows = lod.new_full((), lod.shape[0]).float()
        means[f"mc/lod_loss/{level}"] = masked_sum(pairing.nll, at)
        means[f"mc/lod_count/{level}"] = torch.stack(((context.valid & (lod == level)).sum().float(), rows))
        if level:
            near = after & (nearest_lod == level) & (distance < tree.delta_horizon)
            means[f"mc/gist_entry_delta/{level}"] = masked_sum(delta, at)
            means[f"mc/lod_delta/{level}"] = masked_sum(delta, near)
    means["mc/wc_length"] = torch.stack((context.valid.sum().float(), lod.new_full((), lod.shape[0]).float()))
    for low, high in zip((0, *DISTANCES), DISTANCES, strict=False):
        means[f"mc/delta_after/{high}"] = masked_sum(delta, after & (distance >= low) & (distance < high))
    # Entries before the first gist are the baseline's own: they cannot differ and would dilute the mean.
    differ = loss_mask & (pairing.nearest >= 0)
    advantage = masked_mean(delta, differ, dim=1)
    samples = {"mc/adv_delta": torch.where(differ.any(dim=1), advantage, torch.nan)}
    return StepMetrics(means=means, samples=samples)
