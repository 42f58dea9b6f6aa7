"""Next-token loss."""

from __future__ import annotations

from mcframe.bounds import NonNegative
from mcframe.context.step_metrics import masked_mean
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class NextToken(Loss):
    """NLL of the uncompressed sequence: it trains the base model.

    Mean over the targets of the loss mask, in nats.

    Args:
        weight: Factor in the total.
    """

    name, needs = "next_token", ()

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean NLL of each sequence [B]."""
        return LossTerm(masked_mean(view.uncompressed.nll, view.uncompressed.loss_mask, dim=1))
