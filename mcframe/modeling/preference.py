"""Preference pairs between working contexts, and the loss that teaches LensNet from them.

Pairs join contexts of one sequence and of equal length, so that targets have both signs. Which is better is judged
only by targets behind the cursor, which LensNet cannot see. The pairwise loss is Bradley-Terry's (1952) on signed
block scores, weighted by how clear the preference is.

A sign says what is wanted of a block, so it holds in both contexts of the pair: + where the better one has more detail.
Where a block is a gist, + means expand and - stay; where it is raw, + means keep and - collapse. Asked on the worse
context alone, signs could be read off the level of detail: there a gist has + and a raw block -, whatever they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.counter_rng import hash_combine
from mcframe.context.focus_ops import block_means, collapsible, expandable
from mcframe.context.step_metrics import masked_mean
from mcframe.context.working_context import WorkingContext
from mcframe.modeling.objectives import Objectives

Sides = Literal["both", "worse"]

_SHUFFLE = 1 << 48
"""Salt of the control run's permutation, beyond what salts the variants themselves."""


@dataclass(frozen=True)
class PreferencePairs:
    """Every pair of variants of each sequence, P = V * (V - 1) / 2 of them, and C = sides * blocks scores of each.

    The first `blocks` of C belong to the worse context, the others (if there are any) to the better one.

    counts    [B, P, C] bool: the two contexts differ there, something may be done there, and one of them is better
    sign      [B, P, C] +1 where the better context has more detail, else -1
    strength  [B, P] difference of mean ΔNLL behind the cursor, divided by the scale, not negative
    score     [B, P, C] LensNet's score, averaged over each block
    """

    counts: Tensor
    sign: Tensor
    strength: Tensor
    score: Tensor

    @property
    def exists(self) -> Tensor:
        """[B, P] bool: there is something to prefer."""
        return self.counts.any(dim=-1)


def actionable(context: WorkingContext) -> Tensor:
    """[R, blocks] bool: the block can be expanded or collapsed, so that its score decides something.

    Not so for protected blocks and for what lies behind the cursor. Every block on which two valid focuses differ is
    actionable in both: it is compressed in one of them.
    """
    possible = expandable(context) | collapsible(context)
    return block_means(possible.float(), context) > 0


def pair_indices(variants: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and second variant of every pair, each [P]."""
    first, second = torch.triu_indices(variants, variants, 1, device=device).unbind(0)
    return first, second


def preference_pairs(
    context: WorkingContext,
    verdict: Tensor,
    block_scores: Tensor,
    variants: int,
    sides: Sides = "both",
    scale: Tensor | float = 1.0,
) -> PreferencePairs:
    """Pairs from judged contexts: block_scores [R, blocks], verdict [R] (lower is better, in nats), scale in nats."""
    blocks = block_scores.shape[1]
    first, second = pair_indices(variants, block_scores.device)
    tail_mask = verdict.view(-1, variants)
    loss_first, loss_second = tail_mask[:, first], tail_mask[:, second]
    worse = torch.where(loss_first > loss_second, first, second)
    better = first + second - worse

    def of(index: Tensor, values: Tensor) -> Tensor:
        return values.view(-1, variants, blocks).gather(1, index[..., None].expand(-1, -1, blocks))

    focus, acts = context.focus, actionable(context)
    strength = (loss_first - loss_second).abs()
    lod_worse, lod_better = of(worse, focus), of(better, focus)
    # Contexts that are equally good express no preference: which of them is called worse would be arbitrary.
    differ = (lod_worse != lod_better) & (strength > 0)[..., None]
    sign = torch.where(lod_better < lod_worse, 1.0, -1.0)
    seen = [worse] if sides == "worse" else [worse, better]
    return PreferencePairs(
        counts=torch.cat([differ & of(side, acts) for side in seen], dim=-1),
        sign=sign.repeat(1, 1, len(seen)),
        strength=strength / scale,
        score=torch.cat([of(side, block_scores) for side in seen], dim=-1),
    )


def preference_loss(pairs: PreferencePairs, objectives: Objectives) -> Tensor:
    """Bradley-Terry and rank loss, averaged over what counts in a pair, then over all pairs. Scalar."""
    sharpness = pairs.strength.clamp(min=1.0)[..., None] / objectives.temperature
    logit = pairs.sign * pairs.score * sharpness
    loss = masked_mean(F.softplus(-logit), pairs.counts, dim=-1) * torch.tanh(pairs.strength)
    up, down = pairs.counts & (pairs.sign > 0), pairs.counts & (pairs.sign < 0)
    gap = masked_mean(pairs.score, up, dim=-1) - masked_mean(pairs.score, down, dim=-1)
    both = up.any(dim=-1) & down.any(dim=-1)
    loss = loss + objectives.rank_weight * torch.where(both, torch.relu(objectives.margin - gap), 0.0)
    if objectives.hard_negative_gamma:
        loss = loss * hardness(masked_mean(logit, pairs.counts, dim=-1), objectives.hard_negative_gamma)
    return loss.mean()


def hardness(margin: Tensor, gamma: float) -> Tensor:
    """Weight of a pair that LensNet ranks with this margin [...]: 1 where undecided, more where wrong. Detached.

    Divided by nothing that depends on the other pairs of a batch, so that cutting it changes no weight.
    """
    return (2 * torch.sigmoid(-margin.detach())).pow(gamma)


def shuffled(verdict: Tensor, seeds: Tensor) -> Tensor:
    """Verdicts [R] dealt out anew among the variants of each sequence, by their seeds [B, V]: the control run's.

    What is left of a pair is its strength; which of the two is better has nothing to do with what they hold. Nothing
    crosses sequences, so that neither ranks nor micro-batches change it.
    """
    order = hash_combine(seeds, _SHUFFLE).argsort(dim=1)
    return verdict.view(seeds.shape).gather(1, order).flatten()
