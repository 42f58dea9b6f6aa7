"""z-loss."""

from __future__ import annotations

import torch

from mcframe.bounds import Count, NonNegative
from mcframe.context.step_metrics import masked_mean
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class ZLoss(Loss):
    """The normaliser of the softmax stays near 1: log(Z)**2, Z the sum of the exponentials of the logits.

    Over the targets of the loss mask in the uncompressed pass. A softmax leaves Z undetermined, and in bf16 a large Z
    costs precision.

    Source:
        PaLM (Chowdhery et al., 2022), section 5.

    Args:
        weight: Factor in the total; PaLM uses 1e-4.
        stride: Use every `stride`-th target, so that a large vocabulary costs less.
    """

    name, needs = "z_loss", ()

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 1e-4, stride: Count = 1) -> None:
        super().__init__()
        self.weight, self.stride = weight, stride

    def forward(self, view: StepView) -> LossTerm:
        """Return the loss of each sequence [B]; metric `log_z`: the mean log-sum-exp."""
        pass_, stride = view.uncompressed, self.stride
        log_z = view.logits(pass_.hidden[:, ::stride]).logsumexp(dim=-1)
        mask = pass_.loss_mask[:, ::stride]
        loss = masked_mean(log_z.square(), mask, dim=1)
        return LossTerm(loss, {"log_z": torch.where(mask, log_z.detach(), torch.nan)})
