"""Balance loss."""

from __future__ import annotations

import torch

from mcframe.bounds import NonNegative
from mcframe.context.focus_ops import collapsible, expandable
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class Balance(Loss):
    """Positive and negative scores have equal mass.

    ((P - N) / (P + N))**2, with P and N the positive and negative score mass, weighted by span. Impossible actions are
    masked: a token cannot be expanded; the top level, the protected tail and the sink cannot be collapsed.

    Args:
        weight: Factor in the total.
    """

    name, needs = "balance", ("variants", "scores")

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 0.01) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean over the variants of each sequence [B]."""
        lens = view.with_lens()
        scores, prefix = lens.scores, lens.prefix
        weight = prefix.span.to(scores.dtype) / prefix.slots
        positive = torch.where(expandable(prefix), scores.clamp(min=0) * weight, 0.0).sum(dim=1)
        negative = torch.where(collapsible(prefix), (-scores).clamp(min=0) * weight, 0.0).sum(dim=1)
        imbalance = (positive - negative) / (positive + negative).clamp(min=1e-6)
        return LossTerm(view.by_sequence(imbalance.square()))
