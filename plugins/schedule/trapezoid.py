"""Warm-up, a constant rate, and warm-down."""

from __future__ import annotations

from mcframe.bounds import Fraction
from mcframe.hookspecs import Schedule


class Trapezoid(Schedule):
    """The rate rises linearly from 0, stays at its peak, and falls linearly.

    Args:
        warmup_ratio: Fraction of training over which the rate rises.
        warmdown_ratio: Fraction of training over which it falls to `final_lr_ratio`.
        final_lr_ratio: Fraction of the peak at the end.
    """

    def __init__(
        self, *, warmup_ratio: Fraction = 0.02, warmdown_ratio: Fraction = 0.2, final_lr_ratio: Fraction = 0.0
    ) -> None:
        self.warmup_ratio, self.warmdown_ratio, self.final_lr_ratio = warmup_ratio, warmdown_ratio, final_lr_ratio

    def factor(self, step: int, total_steps: int) -> float:
        """Return the lower one of the rising and the falling line."""
        up, down = self.warmup_ratio * total_steps, self.warmdown_ratio * total_steps
        rise = min(1.0, (step + 1) / up) if up > 0 else 1.0
        fall = min(1.0, (total_steps - step) / down) if down > 0 else 1.0
        return min(rise, self.final_lr_ratio + (1 - self.final_lr_ratio) * fall)
