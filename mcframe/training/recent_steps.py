"""The steps since the last look at them: micro-batches, losses and random states, and flags of anomalies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mcframe.training.random_states import random_states

_MOST_STEPS = 256
"""Steps whose micro-batches are kept on the device, where a run logs less often."""


@dataclass
class RecentStep:
    """A step.

    Attributes:
        step: Steps done before it.
        position: Global index of its first sequence.
        random: The random states of this rank before it.
        batches: Its micro-batches and their losses.
        row: [5] float64 on the device: loss, mean and standard deviation of the losses before, and two flags: not
            finite, spike.
    """

    step: int
    position: int
    random: dict[str, Any] = field(default_factory=random_states)
    batches: list[tuple[Any, Tensor]] = field(default_factory=list)
    row: Tensor | None = None

    def loss(self) -> Tensor:
        """Return the mean loss of its micro-batches, float64."""
        return torch.stack([loss for _, loss in self.batches]).double().mean()


class RecentSteps:
    """The steps since `restart`, and the last one before. Adding one reads nothing back."""

    def __init__(self) -> None:
        self._steps: list[RecentStep] = []
        self._looked_at = 0

    def begin_step(self, step: int = 0, position: int = 0) -> None:
        """Start a step."""
        if len(self._steps) >= _MOST_STEPS:
            forgotten = self._steps[-_MOST_STEPS]
            forgotten.batches, forgotten.random = [], {}
        self._steps.append(RecentStep(step, position))

    def add(self, batch: Any, loss: Tensor) -> None:
        """Add a micro-batch and its loss."""
        self._steps[-1].batches.append((batch, loss.detach()))

    @property
    def last(self) -> RecentStep:
        """The step that runs, or the last one."""
        return self._steps[-1]

    def unread(self) -> list[RecentStep]:
        """Return the complete steps since `restart`."""
        return [each for each in self._steps[self._looked_at :] if each.row is not None]

    def restart(self) -> None:
        """Forget all steps but the last one, whose gradient may be the origin of the next loss."""
        self._steps = self._steps[-1:]
        self._looked_at = len(self._steps)

    def clear(self) -> None:
        """Forget all steps."""
        self._steps, self._looked_at = [], 0

    def suspects(self, bad: RecentStep) -> list[Any]:
        """Return the micro-batches of a step, after those of the step before it, whose gradient may be the origin."""
        index = next(number for number, each in enumerate(self._steps) if each is bad)
        return [batch for each in self._steps[max(0, index - 1) : index + 1] for batch, _ in each.batches]


class LossWindow:
    """The losses of the last steps without an anomaly, on the device.

    Args:
        size: Number of steps.
        device: The device of the losses.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.full((size,), torch.nan, dtype=torch.float64, device=device)

    def compare(self, loss: Tensor, deviations: float, nats: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation of the losses, and whether `loss` is a spike. Reads nothing back.

        Args:
            loss: A scalar, float64.
            deviations: Least height above the mean in standard deviations.
            nats: Least height above the mean in nats.
        """
        mean = self.values.nanmean()
        deviation = (self.values - mean).square().nanmean().sqrt()
        enough = (~self.values.isnan()).sum() >= self.values.numel() // 2
        height = (deviations * deviation).clamp(min=nats)
        return mean, deviation, enough & loss.isfinite() & (loss - mean >= height)

    def put(self, step: int, loss: Tensor, good: Tensor) -> None:
        """Add the loss of a step, in place of the oldest one; leave a gap unless it is good."""
        self.values[step % self.values.numel()] = torch.where(good, loss, torch.nan)

    def restore(self, values: Tensor) -> None:
        """Restore the losses of an earlier session; a window of another size starts empty."""
        if values.shape == self.values.shape:
            self.values.copy_(values)
