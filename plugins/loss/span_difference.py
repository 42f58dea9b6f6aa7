"""Span difference loss."""

from __future__ import annotations

import torch

from mcframe.bounds import NonNegative, Temperature
from mcframe.context.preference_pairs import pair_indices
from mcframe.context.step_metrics import masked_mean
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class SpanDifference(Loss):
    """Differences of scores predict differences of ΔNLL within a pair. Needs two variants or more.

    Squared error between differences of scores and tanh(difference of ΔNLL / scale_nats). In a pair (a, b), A are the
    blocks with less detail in a, B those with less detail in b. The ΔNLL of a minus that of b is what collapsing A
    costs beyond collapsing B. The score of A in a minus that of B in b should predict it, and so should the score of A
    in b minus that of B in a: gists are compared with gists and raw blocks with raw blocks. With `variants.single_span`
    the target belongs to those two spans alone. Pairs without A or B contribute 0.

    Args:
        weight: Factor in the total.
        scale_nats: Difference of ΔNLL in nats with a target of tanh(1).
    """

    name, needs = "span_difference", ("variants", "scores", "pairs")

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 0.1, scale_nats: Temperature = 0.1) -> None:
        super().__init__()
        self.weight, self.scale_nats = weight, scale_nats

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean over the pairs of each sequence [B]."""
        lens, variants = view.with_lens(), view.seeds.shape[1]
        first, second = pair_indices(variants, lens.scores.device)
        focus = lens.prefix.focus.view(-1, variants, lens.prefix.focus.shape[1])
        score, delta = lens.block_scores.view(focus.shape), lens.tail_delta.view(-1, variants)
        one, other = score[:, first], score[:, second]
        less, more = focus[:, first] > focus[:, second], focus[:, first] < focus[:, second]
        target = torch.tanh((delta[:, first] - delta[:, second]) / self.scale_nats)
        of_gists = masked_mean(one, less, dim=-1) - masked_mean(other, more, dim=-1)
        of_raw_blocks = masked_mean(other, less, dim=-1) - masked_mean(one, more, dim=-1)
        error = ((of_gists - target).square() + (of_raw_blocks - target).square()) / 2
        return LossTerm(torch.where(less.any(dim=-1) & more.any(dim=-1), error, 0.0).mean(dim=1))
