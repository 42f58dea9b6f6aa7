"""How LensNet learns: preference pairs between working contexts, or the utility of spans.

Pairs join contexts of one sequence and of equal length, so that targets have both signs. Which is better is judged
only by targets behind the cursor, which LensNet cannot see. The pairwise loss is Bradley-Terry's (1952) on signed
block scores, weighted by how clear the preference is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.focus import block_means, collapsible, expandable
from mcframe.context.pairing import Pairing, span_delta
from mcframe.context.statistics import Statistics, masked_mean, masked_sum, moments, pearson
from mcframe.context.working_context import WorkingContext
from mcframe.modeling.objectives import Objectives


@dataclass(frozen=True)
class PreferencePairs:
    """Every pair of variants of each sequence, P = V * (V - 1) / 2 of them.

    differ    [B, P, blocks] bool: the two contexts differ there, and one of them is better
    sign      [B, P, blocks] +1 where the better context has more detail, else -1
    strength  [B, P] difference of mean ΔNLL behind the cursor, in nats, not negative
    score     [B, P, blocks] LensNet's score on the worse context, averaged over each block
    """

    differ: Tensor
    sign: Tensor
    strength: Tensor
    score: Tensor


def preference_pairs(focus: Tensor, verdict: Tensor, block_scores: Tensor, variants: int) -> PreferencePairs:
    """Pairs from judged contexts: focus and block_scores [R, blocks], verdict [R] (lower is better, in nats)."""
    blocks = block_scores.shape[1]
    first, second = torch.triu_indices(variants, variants, 1, device=block_scores.device).unbind(0)
    judged = verdict.view(-1, variants)
    loss_first, loss_second = judged[:, first], judged[:, second]
    worse = torch.where(loss_first > loss_second, first, second)
    better = first + second - worse

    def of(index: Tensor, values: Tensor) -> Tensor:
        return values.view(-1, variants, blocks).gather(1, index[..., None].expand(-1, -1, blocks))

    lod_worse, lod_better = of(worse, focus), of(better, focus)
    strength = (loss_first - loss_second).abs()
    return PreferencePairs(
        # Contexts that are equally good express no preference: which of them is called worse would be arbitrary.
        differ=(lod_worse != lod_better) & (strength > 0)[..., None],
        sign=torch.where(lod_better < lod_worse, 1.0, -1.0),
        strength=strength,
        score=of(worse, block_scores),
    )


def preference_loss(pairs: PreferencePairs, objectives: Objectives) -> Tensor:
    """Bradley-Terry and rank loss, averaged over differing blocks, then over pairs. Scalar."""
    sharpness = pairs.strength.clamp(min=1.0)[..., None] / objectives.temperature
    per_block = F.softplus(-pairs.sign * pairs.score * sharpness) * torch.tanh(pairs.strength)[..., None]
    loss = masked_mean(per_block, pairs.differ, dim=-1).mean()
    up, down = pairs.differ & (pairs.sign > 0), pairs.differ & (pairs.sign < 0)
    gap = masked_mean(pairs.score, up, dim=-1) - masked_mean(pairs.score, down, dim=-1)
    both = up.any(dim=-1) & down.any(dim=-1)
    rank = torch.where(both, torch.relu(objectives.margin - gap), 0.0).mean()
    return loss + objectives.rank_weight * rank


def budget_loss(scores: Tensor, context: WorkingContext) -> Tensor:
    """((P - N) / (P + N))**2: wishes to expand and to collapse should balance, weighted by span. Scalar.

    Actions that are not possible are left out: a token cannot be expanded, the top level, the protected tail and the
    sink cannot be collapsed.
    """
    weight = context.span / context.slots
    positive = torch.where(expandable(context), scores.clamp(min=0) * weight, 0.0).sum(dim=1)
    negative = torch.where(collapsible(context), (-scores).clamp(min=0) * weight, 0.0).sum(dim=1)
    return ((positive - negative) / (positive + negative).clamp(min=1e-6)).square().mean()


def span_utility_loss(scores: Tensor, verdict: Tensor, context: WorkingContext, scale: float) -> Tensor:
    """Squared error between a collapsed span's score and the squashed ΔNLL of the context it is collapsed in. Scalar.

    ΔNLL is taken behind the cursor: what stands before it LensNet can see, so it must not judge. One context says
    nothing of one span; over many random contexts the regression finds each span's share.
    """
    target = torch.tanh(verdict / scale)[:, None]
    return masked_mean((scores - target).square(), expandable(context), dim=1).mean()


def lens_objective(
    scores: Tensor, context: WorkingContext, pairing: Pairing, verdict: Tensor, variants: int, objectives: Objectives
) -> tuple[Tensor, Statistics]:
    """LensNet's loss (scalar, not yet weighted by `lens_weight`) and its metrics.

    scores [R, Lc] belong to `context`, the entries before the cursor; verdict [R] is the mean ΔNLL behind the cursor
    by which contexts are compared.
    """
    paired = variants > 1
    statistics = _score_statistics(scores, context, pairing)
    loss = objectives.budget_weight * budget_loss(scores, context)
    if paired:
        pairs = preference_pairs(context.focus, verdict, block_means(scores, context), variants)
        statistics |= _pair_statistics(pairs)
    if paired and objectives.lens_objective != "span_utility":
        loss = loss + preference_loss(pairs, objectives)
    else:
        loss = loss + span_utility_loss(scores, verdict, context, objectives.utility_scale)
    return loss, statistics


def _score_statistics(scores: Tensor, context: WorkingContext, pairing: Pairing) -> Statistics:
    scores = scores.detach().float()
    cut = context.length
    reach = context.geometry.block_size
    damage, followers = (part[:, :cut] for part in span_delta(pairing, reach))
    mean = masked_mean(scores, context.valid, dim=1)[:, None]
    spread = masked_mean((scores - mean).square(), context.valid, dim=1).sqrt()
    return Statistics(
        means={
            "mc/policy_score_abs_mean": masked_sum(scores.abs(), context.valid),
            "mc/policy_score_std_mean": masked_sum(spread, torch.ones_like(spread, dtype=torch.bool)),
        },
        moments={"mc/pref_score_corr": moments(scores, damage, (followers > 0) & (context.lod > 0))},
    )


def _pair_statistics(pairs: PreferencePairs) -> Statistics:
    signed = pairs.sign * torch.tanh(pairs.strength)[..., None]
    exists = pairs.differ.any(dim=-1)
    vote = torch.where(pairs.differ, pairs.sign * pairs.score.detach(), 0.0).sum(dim=-1)
    agreement = torch.where(vote > 0, 1.0, torch.where(vote == 0, 0.5, 0.0))
    correlation = pearson(pairs.score, pairs.sign, pairs.differ)
    return Statistics(
        means={"mc/preference_agreement": masked_sum(agreement, exists)},
        sums={"mc/preference_pair_count": exists.sum().double()},
        samples={"mc/preference_corr": correlation.flatten().float()},
        moments={"mc/pref_span_corr": moments(pairs.score, signed, pairs.differ)},
    )
