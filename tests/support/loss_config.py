"""Settings of all built-in losses in one flat object, for tests that vary them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcframe.hookspecs import Loss, ModelShape
from mcframe.losses.lens_targets import LensTargetsConfig
from mcframe_plugins.loss.attribution import Attribution
from mcframe_plugins.loss.balance import Balance
from mcframe_plugins.loss.delta_penalty import DeltaPenalty
from mcframe_plugins.loss.distillation import Distillation
from mcframe_plugins.loss.ema_kl import EMAKL
from mcframe_plugins.loss.next_token import NextToken
from mcframe_plugins.loss.preference import Preference
from mcframe_plugins.loss.reconstruction import Reconstruction
from mcframe_plugins.loss.span_difference import SpanDifference
from mcframe_plugins.loss.span_utility import SpanUtility
from mcframe_plugins.loss.variants import VariantNLL


@dataclass(frozen=True)
class LossConfig:
    """Weights and settings of the losses. `lens` multiplies the weight of every loss of LensNet."""

    next_token: float = 1.0
    variants: float = 1.0
    delta_penalty: float = 0.1
    distillation: float = 0.0
    contrast: float = 0.0
    gist_targets: bool = True
    reconstruction: float = 0.0
    blocks: Sequence[int] = (1, 2, 4)
    fraction: float = 0.5
    lens: float = 0.1
    kind: Literal["preference", "span_utility", "span_difference"] = "preference"
    attribution: float = 0.0
    condition: Literal["gist", "drop"] = "gist"
    shuffle: bool = False
    sides: Literal["both", "worse"] = "both"
    scale_nats: float = 1.0
    normalise: bool = False
    decay: float = 0.99
    focal_gamma: float = 0.0
    ema_kl: float = 0.0
    ema_decay: float = 0.99
    rank_weight: float = 0.5
    balance: float = 0.1
    rank_margin: float = 0.1
    temperature: float = 1.0
    utility_scale: float = 0.1

    @property
    def lens_targets(self) -> LensTargetsConfig:
        """The targets of LensNet's losses."""
        return LensTargetsConfig(
            self.condition, self.sides, self.scale_nats, self.normalise, self.decay, self.shuffle
        )  # fmt: skip

    def losses(self, shape: ModelShape) -> list[Loss]:
        """Build the losses that train base model and GistNet, then those of LensNet."""
        found: list[Loss] = [
            NextToken(shape, weight=self.next_token),
            VariantNLL(shape, weight=self.variants),
            DeltaPenalty(shape, weight=self.delta_penalty),
        ]
        if self.distillation:
            found.append(
                Distillation(
                    shape, weight=self.distillation, contrast=self.contrast, gist_targets=self.gist_targets
                )
            )  # fmt: skip
        if self.reconstruction:
            found.append(Reconstruction(shape, weight=self.reconstruction, blocks=self.blocks, fraction=self.fraction))
        return found + self.lens_losses(shape)

    def lens_losses(self, shape: ModelShape) -> list[Loss]:
        """Build the losses of LensNet."""
        weight, scale = self.lens, self.utility_scale
        main: dict[str, Loss] = {
            "preference": Preference(
                shape, weight=weight, rank_weight=self.rank_weight, rank_margin=self.rank_margin,
                temperature=self.temperature, focal_gamma=self.focal_gamma,
            ),
            "span_utility": SpanUtility(shape, weight=weight, scale_nats=scale),
            "span_difference": SpanDifference(shape, weight=weight, scale_nats=scale),
        }  # fmt: skip
        found: list[Loss] = [Balance(shape, weight=weight * self.balance), main[self.kind]]
        if self.attribution:
            found.append(Attribution(shape, weight=weight * self.attribution, temperature=self.temperature))
        if self.ema_kl:
            found.append(EMAKL(shape, weight=weight * self.ema_kl, decay=self.ema_decay, temperature=self.temperature))
        return found
