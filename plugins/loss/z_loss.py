"""z-loss: logits that neither drift nor blow up (Chowdhery et al., PaLM, 2022, section 5).

`log(Z)**2` of every target, where Z is the sum of the exponentials of its logits: a softmax does not say what Z should
be, and in bf16 a large one costs precision.
"""

from __future__ import annotations

from mcframe.context.step_metrics import masked_mean
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class ZLoss(Loss):
    """The square of the logits' log-sum-exp over the scored targets of the uncompressed pass.

    weight  PaLM's is 1e-4
    stride  takes every so many targets, so that a large vocabulary costs less
    """

    name = "z_loss"
    needs = "baseline"

    def __init__(self, shape: ModelShape, *, weight: float = 1e-4, stride: int = 1) -> None:
        super().__init__()
        self.weight, self.stride = weight, stride

    def forward(self, view: StepView) -> LossTerm:
        """Loss [B]; the metric `log_z` is the mean log-sum-exp."""
        hidden, loss_mask = view.baseline.hidden[:, :: self.stride], view.baseline.loss_mask[:, :: self.stride]
        log_z = view.logits(hidden).logsumexp(dim=-1)
        return LossTerm(masked_mean(log_z.square(), loss_mask, dim=1), {"log_z": log_z.detach()})
