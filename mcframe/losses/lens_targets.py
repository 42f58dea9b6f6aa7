"""The targets that LensNet is trained on: ΔNLL of the variants after the cursor, and preference pairs from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mcframe.bounds import Decay, Temperature
from mcframe.context.counter_rng import hash_combine
from mcframe.context.delta_nll import PairedNLL, tail_delta
from mcframe.context.preference_pairs import PreferencePairs, Sides, pair_indices, preference_pairs
from mcframe.context.working_context import WorkingContext

_SHUFFLE_SALT = 1 << 48
"""Salt of the control run's permutation, different from the salts of the variants."""

_MIN_SCALE = 1e-6
"""Nats; smaller differences are rounding."""


@dataclass(frozen=True)
class LensTargetsConfig:
    """The targets of LensNet's losses: ΔNLL of the variants, and preference pairs from it (gin: `lens_targets`).

    Attributes:
        condition: What replaces a collapsed block when variants are compared: its gist, or nothing.
        sides: The contexts of a preference pair that carry signs; with 'worse' the level of detail predicts the sign.
        scale_nats: Difference of ΔNLL, in nats, that counts as a clear preference.
        normalise: Replace `scale_nats` by the running root mean square of such differences.
        decay: Weight of the previous steps in that mean square.
        shuffle: Permute the targets among the variants of each sequence. The control run: LensNet must learn nothing.
    """

    condition: Literal["gist", "drop"] = "gist"
    sides: Sides = "both"
    scale_nats: Temperature = 1.0
    normalise: bool = False
    decay: Decay = 0.99
    shuffle: bool = False


class LensTargets(nn.Module):
    """Targets of a micro-batch, and the running scale of preferences.

    The scale does not change within a step, so that the cut into micro-batches changes no loss. A step's differences
    are summed on the device; `after_step` adds them to the running sums, reduced over ranks.
    """

    pending: Tensor
    running: Tensor

    def __init__(self, config: LensTargetsConfig, variants: int) -> None:
        super().__init__()
        self.config, self.variants = config, variants
        # Sum of squared differences and number of pairs: of this step, and decayed over all steps before it.
        self.register_buffer("pending", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("running", torch.zeros(2, dtype=torch.float64))

    def targets(self, paired: PairedNLL, seeds: Tensor) -> Tensor:
        """Return each variant's mean ΔNLL after the cursor [R], in nats, detached.

        Args:
            paired: The variants by which contexts are compared (`condition`).
            seeds: Seeds of the variants [B, V], for `shuffle`.
        """
        delta = tail_delta(paired).detach()
        return shuffle_targets(delta, seeds) if self.config.shuffle else delta

    def scale(self, dtype: torch.dtype) -> Tensor:
        """Return the scale of preferences, a scalar in nats; `scale_nats` until the first step is done."""
        fixed = self.running.new_full((), self.config.scale_nats)
        if not self.config.normalise:
            return fixed.to(dtype)
        squares, pairs = self.running
        deviation = (squares / pairs.clamp(min=1e-12)).sqrt().clamp(min=_MIN_SCALE)
        return torch.where(pairs > 0, deviation, fixed).to(dtype)

    def pairs(self, prefix: WorkingContext, delta: Tensor, block_scores: Tensor) -> PreferencePairs | None:
        """Return the preference pairs of the variants, None with one variant; add them to the running scale."""
        if self.variants < 2:
            return None
        if self.config.normalise and self.training:
            self._add(prefix.focus, delta)
        return preference_pairs(prefix, delta, block_scores, self.variants, self.config.sides)

    def _add(self, focus: Tensor, delta: Tensor) -> None:
        first, second = pair_indices(self.variants, delta.device)
        values, focus = delta.double().view(-1, self.variants), focus.view(-1, self.variants, focus.shape[1])
        differ = (focus[:, first] != focus[:, second]).any(dim=-1)
        squares = torch.where(differ, (values[:, first] - values[:, second]).square(), 0.0)
        self.pending += torch.stack((squares.sum(), differ.sum().double()))

    @torch.no_grad()
    def after_step(self) -> None:
        """Add the step's differences to the running sums. Collective if there are several ranks."""
        if self.config.normalise:
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(self.pending)
            self.running.mul_(self.config.decay).add_(self.pending)
            self.pending.zero_()


def shuffle_targets(targets: Tensor, seeds: Tensor) -> Tensor:
    """Permute targets [R] among the variants of each sequence, as a function of their seeds [B, V].

    No target crosses sequences, so ranks and micro-batches change nothing.
    """
    order = hash_combine(seeds, _SHUFFLE_SALT).argsort(dim=1)
    return targets.view(seeds.shape).gather(1, order).flatten()
