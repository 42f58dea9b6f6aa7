"""EMA-KL loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.bounds import Decay, NonNegative, Temperature
from mcframe.context.focus_ops import block_means
from mcframe.context.preference_pairs import actionable
from mcframe.context.step_metrics import StepMetrics, masked_mean, masked_sum
from mcframe.hookspecs import LensNet, Loss, LossTerm, ModelShape, StepView

DECLARED_METRICS = {
    "mc/ema_kl": ("nats", "neither", "KL divergence of LensNet's policy from that of its EMA copy"),
}


class EMAKL(Loss):
    """LensNet's policy stays close to that of its exponential moving average. Not with ZeRO 3.

    KL in nats of the policy from the EMA's, averaged over the blocks that can change. A score s is the policy "more
    detail with probability sigmoid(s / temperature)", as in the preference loss.

    Args:
        weight: Factor in the total.
        decay: Weight of the old average in each step.
        temperature: Divides the scores.
    """

    name, needs, part = "ema_kl", ("variants", "scores"), "lensnet"
    # The average cannot follow weights that ZeRO 3 partitions among ranks.
    max_zero_stage = 2

    steps: Tensor

    def __init__(
        self, shape: ModelShape, *, weight: NonNegative = 0.01, decay: Decay = 0.99, temperature: Temperature = 1.0
    ) -> None:
        super().__init__()
        self.weight, self.decay, self.temperature = weight, decay, temperature
        self.average: nn.Module | None = None
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def setup(self, parts: Mapping[str, nn.Module]) -> None:
        """Copy LensNet."""
        lensnet = parts.get("lensnet")
        self.average = None if lensnet is None else frozen_copy(lensnet)

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean KL of each sequence's variants [B]."""
        lens = view.with_lens()
        assert isinstance(self.average, LensNet)
        with torch.no_grad():
            average = block_means(self.average(lens.prefix, lens.embeddings.float()).to(lens.scores.dtype), lens.prefix)
        # The first step has no average yet: LensNet may have received other weights after setup (run.start_from).
        average = torch.where(self.steps == 0, lens.block_scores.detach(), average)
        kl = mean_policy_kl(lens.block_scores, average, actionable(lens.prefix), self.temperature)
        figure = masked_sum(kl, torch.ones_like(kl, dtype=torch.bool))
        return LossTerm(view.by_sequence(kl), StepMetrics(means={"mc/ema_kl": figure}))

    @torch.no_grad()
    def after_step(self, parts: Mapping[str, nn.Module]) -> None:
        """Move the average towards LensNet."""
        if self.average is None:
            return
        # The first step copies, see `forward`.
        rate = torch.where(self.steps == 0, 1.0, 1 - self.decay)
        slow = dict(self.average.named_buffers())
        for name, weight in parts["lensnet"].named_parameters():
            slow[name].lerp_(weight.to(slow[name].dtype), rate.to(slow[name].dtype))
        for name, buffer in parts["lensnet"].named_buffers():
            slow[name].copy_(buffer)
        self.steps += 1

    def train(self, mode: bool = True) -> EMAKL:
        """Set the mode; the average stays in eval mode, so that its scores are deterministic."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self


def mean_policy_kl(scores: Tensor, average: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return the KL [R] in nats of the average's policy from the current one, averaged over blocks where `mask`.

    Args:
        scores: [R, blocks].
        average: [R, blocks], detached inside.
        mask: [R, blocks] bool.
        temperature: Divides both.
    """
    before, now = average.detach() / temperature, scores / temperature
    p = torch.sigmoid(before)
    kl = p * (F.logsigmoid(before) - F.logsigmoid(now)) + (1 - p) * (F.logsigmoid(-before) - F.logsigmoid(-now))
    return masked_mean(kl, mask, dim=1)


def frozen_copy(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode that has buffers in place of parameters.

    No optimizer takes buffers, and DeepSpeed leaves them in float32 at bf16. In bfloat16, an average that moves by a
    hundredth a step would not move at all.
    """
    frozen = copy.deepcopy(module).eval()
    tied: dict[int, Tensor] = {}
    for child in frozen.modules():
        for name, parameter in list(child.named_parameters(recurse=False, remove_duplicate=False)):
            delattr(child, name)
            child.register_buffer(name, tied.setdefault(id(parameter), parameter.detach().clone()))
    return frozen
