"""What LensNet's objective carries from one optimizer step to the next: how strong preferences are, its former policy.

Nothing of it changes within a step, so that cutting a step into micro-batches changes no loss. What a step adds is
gathered on the device and taken in by `after_step`, once, by all ranks alike. It travels with checkpoints.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import LensNet
from mcframe.modeling.objectives import Objectives
from mcframe.modeling.preference import pair_indices

_LEAST_SCALE = 1e-6
"""Nats; verdicts that differ by less are rounding."""


@dataclass(frozen=True)
class Remembered:
    """What former steps say of this one; None where nothing is remembered.

    scale   scalar: the running standard deviation of preferences, in nats
    scores  [R, Lc] of the former LensNet, detached
    """

    scale: Tensor | None = None
    scores: Tensor | None = None


class LensMemory(nn.Module):
    """A running standard deviation of preferences and a slow copy of LensNet, whichever the objectives ask for.

    The deviation is taken about 0, since the two contexts of a pair have no order: the root of the mean square of
    their differences, over all steps so far, each weighing `strength_decay` times what the next one weighs. The copy
    moves by `1 - policy_decay` of the way to LensNet in every step.
    """

    pending: Tensor
    running: Tensor
    steps: Tensor

    def __init__(self, lensnet: LensNet, objectives: Objectives) -> None:
        super().__init__()
        self.objectives = objectives
        self.copy: LensNet | None = None
        if objectives.policy_kl_weight:
            self.copy = _frozen(lensnet)
        # Sum of squared differences of verdicts and number of pairs: of this step, and of all before it.
        self.register_buffer("pending", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("running", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @staticmethod
    def wanted(objectives: Objectives) -> bool:
        """Whether these objectives remember anything."""
        return objectives.normalise_strength or bool(objectives.policy_kl_weight)

    def forward(self, context: WorkingContext, embeddings: Tensor, verdict: Tensor, variants: int) -> Remembered:
        """What to compare this micro-batch with; takes note of its verdicts [R] for the steps to come."""
        scale = scores = None
        if self.objectives.normalise_strength:
            scale = self.scale.to(verdict.dtype)
            if self.training:
                self._note(context.focus, verdict, variants)
        if self.copy is not None:
            with torch.no_grad():
                scores = self.copy(context, embeddings.float()).float()
        return Remembered(scale, scores)

    @property
    def scale(self) -> Tensor:
        """Scalar, in nats; `preference_scale` until the first step is over."""
        squares, pairs = self.running
        deviation = (squares / pairs.clamp(min=1e-12)).sqrt().clamp(min=_LEAST_SCALE)
        return torch.where(pairs > 0, deviation, self.objectives.preference_scale)

    def _note(self, focus: Tensor, verdict: Tensor, variants: int) -> None:
        first, second = pair_indices(variants, verdict.device)
        tail_mask, focus = verdict.double().view(-1, variants), focus.view(-1, variants, focus.shape[1])
        differ = (focus[:, first] != focus[:, second]).any(dim=-1)
        squares = torch.where(differ, (tail_mask[:, first] - tail_mask[:, second]).square(), 0.0)
        self.pending += torch.stack((squares.sum(), differ.sum().double()))

    @torch.no_grad()
    def after_step(self, lensnet: LensNet) -> None:
        """An optimizer step is done and LensNet's weights have moved. Collective where there are several ranks."""
        if self.objectives.normalise_strength:
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(self.pending)
            self.running.mul_(self.objectives.strength_decay).add_(self.pending)
            self.pending.zero_()
        if self.copy is not None:
            # The first step copies outright: LensNet may have been given other weights after it was built.
            share = torch.where(self.steps == 0, 1.0, 1 - self.objectives.policy_decay)
            slow = dict(self.copy.named_buffers())
            for name, weight in lensnet.named_parameters():
                slow[name].lerp_(weight.to(slow[name].dtype), share.to(slow[name].dtype))
            for name, state in lensnet.named_buffers():
                slow[name].copy_(state)
        self.steps += 1

    def train(self, mode: bool = True) -> LensMemory:
        """The copy is never trained, so that its scores are the same for the same weights."""
        super().train(mode)
        if self.copy is not None:
            self.copy.eval()
        return self


def _frozen(lensnet: LensNet) -> LensNet:
    """A copy of LensNet that has buffers for parameters: no optimizer takes them, and with bf16 they stay float32.

    DeepSpeed casts parameters and leaves buffers alone. A mean that moves by a hundredth a step would stand still in
    bfloat16.
    """
    frozen = copy.deepcopy(lensnet).eval()
    tied: dict[int, Tensor] = {}
    for module in frozen.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            delattr(module, name)
            module.register_buffer(name, tied.setdefault(id(parameter), parameter.detach().clone()))
    return frozen
