"""LensNet's losses beside preference pairs: balance, the utility of spans, attribution, and staying near its policy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import collapsible, expandable
from mcframe.context.step_metrics import masked_mean
from mcframe.context.working_context import WorkingContext
from mcframe.modeling.preference import pair_indices


def budget_loss(scores: Tensor, context: WorkingContext) -> Tensor:
    """((P - N) / (P + N))**2: wishes to expand and to collapse should balance, weighted by span. Scalar.

    Actions that are not possible are left out: a token cannot be expanded, the top level, the protected tail and the
    sink cannot be collapsed.
    """
    weight = context.span.to(scores.dtype) / context.slots
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


def span_difference_loss(
    block_scores: Tensor, context: WorkingContext, verdict: Tensor, variants: int, scale: float
) -> Tensor:
    """Squared error between differences of scores and the squashed difference of verdicts. Scalar.

    Of a pair (a, b), A are the blocks with less detail in a, B those with less in b. What a loses against b is what
    collapsing A costs beyond collapsing B, so the score of A in a minus that of B in b should say so, and as well the
    score of A in b minus that of B in a: gists are compared with gists and raw blocks with raw blocks. Where contexts
    differ in one span each (`variants.single_span`) the target belongs to those two spans alone. Pairs that lack A or B
    add nothing.
    """
    first, second = pair_indices(variants, block_scores.device)
    focus = context.focus.view(-1, variants, context.focus.shape[1])
    score, tail_mask = block_scores.view(focus.shape), verdict.view(-1, variants)
    one, other = score[:, first], score[:, second]
    less, more = focus[:, first] > focus[:, second], focus[:, first] < focus[:, second]
    target = torch.tanh((tail_mask[:, first] - tail_mask[:, second]) / scale)
    as_coarse = masked_mean(one, less, dim=-1) - masked_mean(other, more, dim=-1)
    as_fine = masked_mean(other, less, dim=-1) - masked_mean(one, more, dim=-1)
    error = ((as_coarse - target).square() + (as_fine - target).square()) / 2
    return torch.where(less.any(dim=-1) & more.any(dim=-1), error, 0.0).mean()


def attribution_margin(
    block_scores: Tensor, context: WorkingContext, verdict: Tensor, variants: int
) -> tuple[Tensor, Tensor]:
    """By how much the worse context of each pair collapses more of what LensNet wants kept, and how much it loses.

    block_scores [B, blocks] of the uncompressed context; verdict [R] in nats. A block's score counts by the entries
    that its level saves: a constant in all scores cancels between contexts of equal length, whatever their levels.
    -> margin [B, P] and nats [B, P], not negative; both 0 where contexts do not differ or neither is worse.
    """
    first, second = pair_indices(variants, block_scores.device)
    focus = context.focus.view(-1, variants, context.focus.shape[1])
    given_up = (_saved(focus, context.tree, block_scores.dtype) * block_scores[:, None]).sum(dim=-1)
    tail_mask = verdict.view(-1, variants)
    differ = (focus[:, first] != focus[:, second]).any(dim=-1)
    lost = torch.where(differ, tail_mask[:, first] - tail_mask[:, second], 0.0)
    return lost.sign() * (given_up[:, first] - given_up[:, second]), lost.abs()


def _saved(focus: Tensor, tree: ContextTree, dtype: torch.dtype) -> Tensor:
    """Entries saved by each block's level, its share of the node's, in units of LOD1's: 0 where raw, 1 at LOD1."""
    size, slots = tree.block_size, tree.slots
    saved = size - slots * torch.pow(float(size), 1 - focus.to(dtype))
    return torch.where(focus > 0, saved / (size - slots), 0.0)


def attribution_loss(margin: Tensor, strength: Tensor, temperature: float) -> Tensor:
    """Bradley-Terry on pairs whose margins are sums over blocks: credit goes to blocks, not to whole contexts. Scalar.

    One sequence's blocks are scored once, uncompressed, so no score can depend on what a variant happens to collapse;
    the additive account of ablated contexts is that of datamodels (Ilyas et al., 2022) and ContextCite (Cohen-Wang et
    al., 2024). margin and strength [B, P]; strength without unit, not negative.
    """
    logit = margin * strength.clamp(min=1.0) / temperature
    return (F.softplus(-logit) * torch.tanh(strength)).mean()


def policy_kl(scores: Tensor, previous: Tensor, acts: Tensor, temperature: float) -> Tensor:
    """[R] KL divergence, in nats, of LensNet's policy from its former one, averaged over the blocks that can act.

    A score s stands for the policy "more detail with probability sigmoid(s / temperature)", the one that preference
    pairs are fitted with. scores and previous [R, blocks]; acts [R, blocks] bool; the former policy is detached.
    """
    former, now = previous.detach() / temperature, scores / temperature
    p = torch.sigmoid(former)
    divergence = p * (F.logsigmoid(former) - F.logsigmoid(now))
    divergence = divergence + (1 - p) * (F.logsigmoid(-former) - F.logsigmoid(-now))
    return masked_mean(divergence, acts, dim=1)
