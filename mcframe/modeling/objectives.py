"""The losses of a MegaContext step and their weights.

Every term is a mean over sequences, so that cutting a batch into micro-batches or ranks changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mcframe.context.delta_nll import PairedNLL
from mcframe.context.step_metrics import masked_mean
from mcframe.context.substitutions import scatter_to_targets
from mcframe.errors import require


@dataclass(frozen=True)
class Objectives:
    """Weights and constants of the losses (gin: `objectives`).

    baseline_weight    next-token loss of the uncompressed sequence
    variant_weight     next-token loss of the variants, averaged over them
    gist_delta_weight  ΔNLL penalty: what a variant loses against the baseline at the same targets
    gist_kl_weight     distillation: KL from the baseline's prediction (detached) to the variant's at the same targets
    kl_contrast        more weight in the distillation for targets that lose without the collapsed spans: a target's
                       weight is 1 + kl_contrast * tanh(ΔNLL of dropping, where positive)
    reconstruction_weight   the tokens of blocks, from their gists alone, by the base model itself
    reconstruction_blocks   how many neighbouring blocks are rebuilt at once, in equal stages of training
    reconstruction_share    share of a sequence's blocks that are rebuilt in a step
    lens_weight        everything that trains LensNet; within it `rank_weight` and `budget_weight`
    lens_objective     preference: pairs of variants; span_utility: a span's score regresses on measured ΔNLL;
                       span_difference: differences of scores regress on differences of ΔNLL within pairs;
                       auto: preference where there are pairs (two variants or more), else span_utility
    attribution_weight within LensNet's loss: what it says of the uncompressed context, added up over what each context
                       of a pair collapses, tells which of the two loses more
    lens_judge         what stands for a collapsed block when contexts are judged for LensNet: gist, or drop
    lens_shuffle       deal verdicts out anew among a sequence's variants: the control run, which must learn nothing
    preference_sides   contexts of a pair on which signs are asked for: both, or the worse one only
    preference_scale   difference of ΔNLL, in nats, that counts as a strength of 1
    normalise_strength divide by the running standard deviation of such differences instead of preference_scale
    strength_decay     what a step's share in that deviation is multiplied with in every later step
    hard_negative_gamma   more weight for pairs that LensNet ranks wrongly: (2 * sigmoid(-margin)) ** gamma
    policy_kl_weight   KL of LensNet's policy from that of a slow copy of it, which moves 1 - policy_decay a step
    margin, temperature, utility_scale   in units of score, of the preference logit, and in nats
    """

    baseline_weight: float = 1.0
    variant_weight: float = 1.0
    gist_delta_weight: float = 0.1
    gist_kl_weight: float = 0.0
    kl_contrast: float = 0.0
    reconstruction_weight: float = 0.0
    reconstruction_blocks: Sequence[int] = (1, 2, 4)
    reconstruction_share: float = 0.5
    lens_weight: float = 0.1
    lens_objective: Literal["auto", "preference", "span_utility", "span_difference"] = "auto"
    attribution_weight: float = 0.0
    lens_judge: Literal["gist", "drop"] = "gist"
    lens_shuffle: bool = False
    preference_sides: Literal["both", "worse"] = "both"
    preference_scale: float = 1.0
    normalise_strength: bool = False
    strength_decay: float = 0.99
    hard_negative_gamma: float = 0.0
    policy_kl_weight: float = 0.0
    policy_decay: float = 0.99
    rank_weight: float = 0.5
    budget_weight: float = 0.1
    margin: float = 0.1
    temperature: float = 1.0
    utility_scale: float = 0.1

    def __post_init__(self) -> None:
        for name in ("temperature", "utility_scale", "preference_scale"):
            value = getattr(self, name)
            require(value > 0, f"objectives.{name}", value, "above 0")
        for name in ("hard_negative_gamma", "policy_kl_weight", "attribution_weight"):
            value = getattr(self, name)
            require(value >= 0, f"objectives.{name}", value, "0 or above")
        for name in ("strength_decay", "policy_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"objectives.{name}", value, "a fraction from 0 and below 1")
        share, stages = self.reconstruction_share, self.reconstruction_blocks
        require(0 < share <= 1, "objectives.reconstruction_share", share, "a fraction above 0 and up to 1")
        require(bool(stages) and min(stages) >= 1, "objectives.reconstruction_blocks", stages, "numbers of 1 or more")

    def rebuild(self, share: float) -> int:
        """Neighbouring blocks that reconstruction tells at once after this share of training (0 to 1)."""
        stages = self.reconstruction_blocks
        return stages[min(int(share * len(stages)), len(stages) - 1)]


def variant_loss(pairing: PairedNLL) -> Tensor:
    """Mean NLL of a variant's predicting entries, averaged over variants. Scalar, in nats."""
    return masked_mean(pairing.nll, pairing.loss_mask, dim=1).mean()


def gist_delta_penalty(pairing: PairedNLL) -> Tensor:
    """relu(mean NLL of the variant - mean NLL of the baseline at the same targets), averaged over variants. In nats."""
    return torch.relu(masked_mean(pairing.delta, pairing.loss_mask, dim=1)).mean()


def distillation(divergence: Tensor, pairing: PairedNLL, dropped: PairedNLL | None, objectives: Objectives) -> Tensor:
    """Mean KL [R, L] over scored targets, averaged over variants; weighted by what dropping costs where that is known.

    A gist's own target has no counterpart without the gist and weighs 1. Scalar, in nats.
    """
    weight = torch.ones_like(divergence)
    if dropped is not None and objectives.kl_contrast:
        cost = scatter_to_targets(dropped.delta, dropped.context, missing=0.0)
        weight = weight + objectives.kl_contrast * torch.tanh(torch.relu(cost.gather(1, pairing.context.end - 1)))
    weight = torch.where(pairing.loss_mask, weight, 0.0)
    return ((divergence * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-6)).mean()
