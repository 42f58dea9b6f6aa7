"""The losses of a MegaContext step and their weights.

Every term is a mean over sequences, so that cutting a batch into micro-batches or ranks changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mcframe.context.pairing import Pairing
from mcframe.context.statistics import masked_mean
from mcframe.errors import require


@dataclass(frozen=True)
class Objectives:
    """Weights and constants of the losses (gin: `objectives`).

    baseline_weight    next-token loss of the uncompressed sequence
    variant_weight     next-token loss of the variants, averaged over them
    gist_delta_weight  ΔNLL penalty: what a variant loses against the baseline at the same targets
    lens_weight        everything that trains LensNet; within it `rank_weight` and `budget_weight`
    lens_objective     preference: pairs of variants; span_utility: a span's score regresses on measured ΔNLL;
                       auto: preference where there are pairs (two variants or more), else span_utility
    margin, temperature, utility_scale   in units of score, of the preference logit, and in nats
    """

    baseline_weight: float = 1.0
    variant_weight: float = 1.0
    gist_delta_weight: float = 0.1
    lens_weight: float = 0.1
    lens_objective: Literal["auto", "preference", "span_utility"] = "auto"
    rank_weight: float = 0.5
    budget_weight: float = 0.1
    margin: float = 0.1
    temperature: float = 1.0
    utility_scale: float = 0.1

    def __post_init__(self) -> None:
        for name in ("temperature", "utility_scale"):
            value = getattr(self, name)
            require(value > 0, f"objectives.{name}", value, "above 0")


def variant_loss(pairing: Pairing) -> Tensor:
    """Mean NLL of a variant's predicting entries, averaged over variants. Scalar, in nats."""
    return masked_mean(pairing.nll, pairing.scored, dim=1).mean()


def gist_delta_penalty(pairing: Pairing) -> Tensor:
    """relu(mean NLL of the variant - mean NLL of the baseline at the same targets), averaged over variants. In nats."""
    return torch.relu(masked_mean(pairing.delta, pairing.scored, dim=1)).mean()
