"""Preference loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.bounds import NonNegative, Temperature
from mcframe.context.preference_pairs import PreferencePairs
from mcframe.context.step_metrics import masked_mean
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class Preference(Loss):
    """LensNet's block scores agree with the better of two contexts. Needs two variants or more.

    softplus(-sign * score * max(1, m) / temperature) * tanh(m) over the blocks of a pair, plus a rank term. m is the
    pair's margin in nats divided by the scale of preferences (`lens_targets`). The rank term is relu(rank_margin -
    (mean score where the sign is + minus mean score where it is -)).

    Source:
        Bradley and Terry, 1952.

    Args:
        weight: Factor in the total.
        rank_weight: Factor of the rank term.
        rank_margin: Its margin, in units of score.
        temperature: Divides the scores.
        focal_gamma: More weight for pairs that LensNet ranks wrongly: (2 * sigmoid(-logit)) ** gamma, detached; 0 =
            equal weights. The weight of a pair depends on that pair alone.
    """

    name, needs = "preference", ("variants", "scores", "pairs")

    def __init__(
        self,
        shape: ModelShape,
        *,
        weight: NonNegative = 0.1,
        rank_weight: NonNegative = 0.5,
        rank_margin: NonNegative = 0.1,
        temperature: Temperature = 1.0,
        focal_gamma: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        self.weight, self.rank_weight, self.rank_margin = weight, rank_weight, rank_margin
        self.temperature, self.focal_gamma = temperature, focal_gamma

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean over the pairs of each sequence [B]."""
        lens = view.with_lens()
        assert lens.pairs is not None
        return LossTerm(self.pair_loss(lens.pairs, lens.scale_nats).mean(dim=1))

    def pair_loss(self, pairs: PreferencePairs, scale_nats: Tensor) -> Tensor:
        """Return the loss of each pair [B, P]."""
        margin = pairs.margin_nats / scale_nats
        logit = pairs.sign * pairs.score * (margin.clamp(min=1.0)[..., None] / self.temperature)
        loss = masked_mean(F.softplus(-logit), pairs.mask, dim=-1) * torch.tanh(margin)
        up, down = pairs.mask & (pairs.sign > 0), pairs.mask & (pairs.sign < 0)
        gap = masked_mean(pairs.score, up, dim=-1) - masked_mean(pairs.score, down, dim=-1)
        both = up.any(dim=-1) & down.any(dim=-1)
        loss = loss + self.rank_weight * torch.where(both, torch.relu(self.rank_margin - gap), 0.0)
        if self.focal_gamma:
            loss = loss * focal_weight(masked_mean(logit, pairs.mask, dim=-1), self.focal_gamma)
        return loss


def focal_weight(logit: Tensor, gamma: float) -> Tensor:
    """Return the detached weight of pairs with these mean logits: 1 where undecided, more where wrong."""
    return (2 * torch.sigmoid(-logit.detach())).pow(gamma)
