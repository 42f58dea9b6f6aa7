"""Distillation of the uncompressed pass into the variants."""

from __future__ import annotations

import torch

from mcframe.bounds import NonNegative
from mcframe.context.step_metrics import StepMetrics, masked_sum
from mcframe.context.substitutions import scatter_to_targets
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView

DECLARED_METRICS = {
    "mc/gist_kl": ("nats", "lower", "KL divergence from the baseline's prediction to the variant's"),
}


class Distillation(Loss):
    """KL from the uncompressed prediction to the variant's, optionally with more weight where dropping costs.

    Weighted mean of KL(uncompressed, detached ‖ variant) in nats over paired targets, averaged over variants. The
    weight of a target is 1 + contrast * tanh(relu(ΔNLL of dropping the collapsed blocks)). A gist's own target has no
    counterpart without the gist; its weight is 1.

    Source:
        Knowledge distillation (Hinton et al., 2015).

    Args:
        weight: Factor in the total.
        contrast: Additional weight of targets that lose without the collapsed blocks. Above 0 it costs one more pass of
            the variants.
        gist_targets: Also compare what gists predict: the first token after their span. False counts tokens alone.
    """

    name, needs = "distillation", ("variants", "kl")

    def __init__(
        self,
        shape: ModelShape,
        *,
        weight: NonNegative = 1.0,
        contrast: NonNegative = 0.0,
        gist_targets: bool = True,
    ) -> None:
        super().__init__()
        self.weight, self.contrast, self.gist_targets = weight, contrast, gist_targets
        if contrast:
            self.needs = ("variants", "kl", "dropped")

    def forward(self, view: StepView) -> LossTerm:
        """Return the weighted mean KL of each sequence [B]."""
        variants = view.with_variants()
        paired, kl, dropped = variants.paired, variants.kl, variants.dropped
        assert kl is not None
        weight = torch.ones_like(kl)
        if self.contrast and dropped is not None:
            cost = scatter_to_targets(dropped.delta, dropped.context, missing=0.0)
            weight = weight + self.contrast * torch.tanh(torch.relu(cost.gather(1, paired.context.end - 1)))
        counts = paired.loss_mask if self.gist_targets else paired.loss_mask & (paired.context.lod == 0)
        weight = torch.where(counts, weight, 0.0)
        mean = (kl * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-6)
        return LossTerm(view.by_sequence(mean), StepMetrics(means={"mc/gist_kl": masked_sum(kl, counts)}))
