"""ΔNLL penalty."""

from __future__ import annotations

import torch

from mcframe.bounds import NonNegative
from mcframe.context.step_metrics import StepMetrics, masked_mean, masked_sum
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView

DECLARED_METRICS = {
    "mc/gist_delta_penalty": ("nats", "lower", "ΔNLL penalty: mean of relu(mean delta of a variant)"),
}


class DeltaPenalty(Loss):
    """Penalty on what a variant loses compared with the uncompressed pass.

    relu(mean NLL of the variant - mean uncompressed NLL at the same targets, detached), in nats, averaged over
    variants.

    Args:
        weight: Factor in the total.
    """

    name = "delta_penalty"

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, view: StepView) -> LossTerm:
        """Return the penalty of each sequence [B]."""
        paired = view.with_variants().paired
        penalty = view.by_sequence(torch.relu(masked_mean(paired.delta, paired.loss_mask, dim=1)))
        figure = masked_sum(penalty, torch.ones_like(penalty, dtype=torch.bool))
        return LossTerm(penalty, StepMetrics(means={"mc/gist_delta_penalty": figure}))
