"""Next-token loss of the variants."""

from __future__ import annotations

from mcframe.bounds import NonNegative
from mcframe.context.step_metrics import masked_mean
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class VariantNLL(Loss):
    """NLL of the variants: it trains GistNet, and the base model to read gists.

    Mean over the predicting entries of each variant, in nats, then over variants.

    Args:
        weight: Factor in the total.
    """

    name, compares = "variants", False

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean NLL of each sequence's variants [B]."""
        paired = view.with_variants().paired
        return LossTerm(view.by_sequence(masked_mean(paired.nll, paired.target_mask, dim=1)))
