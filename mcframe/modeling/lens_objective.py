"""How LensNet learns: its loss put together from its terms, and the metrics that describe it."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.delta_nll import PairedNLL, span_delta
from mcframe.context.focus_ops import block_means
from mcframe.context.step_metrics import StepMetrics, masked_mean, masked_sum, moments, pearson
from mcframe.context.working_context import WorkingContext
from mcframe.modeling.lens_losses import (
    attribution_loss,
    attribution_margin,
    budget_loss,
    policy_kl,
    span_difference_loss,
    span_utility_loss,
)
from mcframe.modeling.lens_memory import Remembered
from mcframe.modeling.objectives import Objectives
from mcframe.modeling.preference import PreferencePairs, actionable, preference_loss, preference_pairs


def lens_objective(
    scores: Tensor,
    context: WorkingContext,
    pairing: PairedNLL,
    verdict: Tensor,
    variants: int,
    objectives: Objectives,
    remembered: Remembered | None = None,
    uncompressed: Tensor | None = None,
) -> tuple[Tensor, StepMetrics]:
    """LensNet's loss (scalar, not yet weighted by `lens_weight`) and its metrics.

    scores [R, Lc] belong to `context`, the entries before the cursor; verdict [R] is the mean ΔNLL behind the cursor
    by which contexts are compared; remembered: what is carried over from former steps, if anything is; uncompressed
    [B, blocks]: scores of the blocks of the whole sequence before the cursor, for attribution.
    """
    known = remembered or Remembered()
    kind = objectives.lens_objective if variants > 1 else "span_utility"
    per_block = block_means(scores, context)
    statistics = _score_statistics(scores, context, pairing)
    loss = objectives.budget_weight * budget_loss(scores, context)
    if variants > 1:
        scale = objectives.preference_scale if known.scale is None else known.scale
        pairs = preference_pairs(context, verdict, per_block, variants, objectives.preference_sides, scale)
        statistics |= _pair_statistics(pairs, scale)
        if uncompressed is not None:
            margin, nats = attribution_margin(uncompressed, context, verdict, variants)
            attributed = attribution_loss(margin, nats / scale, objectives.temperature)
            loss = loss + objectives.attribution_weight * attributed
            statistics.means["mc/attribution_agreement"] = masked_sum(_ranked(margin), nats > 0)
    if kind == "span_utility":
        loss = loss + span_utility_loss(scores, verdict, context, objectives.utility_scale)
    elif kind == "span_difference":
        loss = loss + span_difference_loss(per_block, context, verdict, variants, objectives.utility_scale)
    else:
        loss = loss + preference_loss(pairs, objectives)
    if known.scores is not None:
        former = block_means(known.scores, context)
        moved = policy_kl(per_block, former, actionable(context), objectives.temperature)
        loss = loss + objectives.policy_kl_weight * moved.mean()
        statistics.means["mc/ema_kl"] = masked_sum(moved, torch.ones_like(moved).bool())
    return loss, statistics


def _score_statistics(scores: Tensor, context: WorkingContext, pairing: PairedNLL) -> StepMetrics:
    scores = scores.detach().float()
    cut = context.length
    damage, followers = (part[:, :cut] for part in span_delta(pairing))
    mean = masked_mean(scores, context.valid, dim=1)[:, None]
    spread = masked_mean((scores - mean).square(), context.valid, dim=1).sqrt()
    return StepMetrics(
        means={
            "mc/policy_score_abs_mean": masked_sum(scores.abs(), context.valid),
            "mc/policy_score_std_mean": masked_sum(spread, torch.ones_like(spread, dtype=torch.bool)),
        },
        moments={"mc/pref_score_corr": moments(scores, damage, (followers > 0) & (context.lod > 0))},
    )


def _ranked(margin: Tensor) -> Tensor:
    """1 where a pair is ranked rightly, 0 where wrongly; a tie counts half."""
    return torch.where(margin > 0, 1.0, torch.where(margin == 0, 0.5, 0.0))


def _pair_statistics(pairs: PreferencePairs, scale: Tensor | float) -> StepMetrics:
    signed = pairs.sign * torch.tanh(pairs.strength)[..., None]
    vote = torch.where(pairs.counts, pairs.sign * pairs.score.detach(), 0.0).sum(dim=-1)
    correlation = pearson(pairs.score, pairs.sign, pairs.counts)
    return StepMetrics(
        means={
            "mc/preference_agreement": masked_sum(_ranked(vote), pairs.exists),
            "mc/preference_strength": masked_sum(pairs.strength * scale, pairs.exists),
        },
        sums={"mc/preference_pair_count": pairs.exists.sum().double()},
        samples={"mc/preference_corr": correlation.flatten().float()},
        moments={"mc/pref_span_corr": moments(pairs.score, signed, pairs.counts)},
    )
