"""Span utility loss."""

from __future__ import annotations

import torch

from mcframe.bounds import NonNegative, Temperature
from mcframe.context.focus_ops import expandable
from mcframe.context.step_metrics import masked_mean
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class SpanUtility(Loss):
    """The score of a gist predicts what its context costs; one variant is enough.

    Squared error between a collapsed span's score and tanh(ΔNLL / scale_nats) of its context. ΔNLL is measured after
    the cursor, because LensNet reads what is before it. One context does not isolate one span; over many random
    contexts the regression finds each span's contribution.

    Args:
        weight: Factor in the total.
        scale_nats: ΔNLL in nats with a target of tanh(1).
    """

    name, needs = "span_utility", ("variants", "scores")

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 0.1, scale_nats: Temperature = 0.1) -> None:
        super().__init__()
        self.weight, self.scale_nats = weight, scale_nats

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean squared error of each sequence [B]."""
        lens = view.with_lens()
        target = torch.tanh(lens.tail_delta / self.scale_nats)[:, None]
        error = masked_mean((lens.scores - target).square(), expandable(lens.prefix), dim=1)
        return LossTerm(view.by_sequence(error))
