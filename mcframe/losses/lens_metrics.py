"""Metrics of LensNet's scores and of preference pairs; see docs/concepts.md."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.delta_nll import PairedNLL, span_delta
from mcframe.context.preference_pairs import PreferencePairs, ranked_correctly
from mcframe.context.step_metrics import StepMetrics, masked_mean, masked_sum, moments, pearson
from mcframe.interfaces.loss import LensPass

DECLARED_METRICS = {
    "mc/policy_score_abs_mean": ("1", "neither", "mean absolute score"),
    "mc/policy_score_std_mean": ("1", "neither", "standard deviation of the scores in a context, averaged"),
    "mc/preference_corr_mean":
        ("1", "higher", "Pearson's correlation of block scores with the signs of a pair, mean over pairs"),
    "mc/preference_corr_max": ("1", "higher", "maximum over pairs of that correlation"),
    "mc/preference_corr_min": ("1", "higher", "minimum over pairs of that correlation"),
    "mc/preference_corr_undefined": ("pairs", "neither", "pairs whose correlation is undefined"),
    "mc/preference_agreement":
        ("fraction", "higher", "fraction of pairs with a positive sum of sign · score; ties count half"),
    "mc/preference_pair_count": ("pairs", "neither", "pairs whose contexts differ and are not equally good"),
    "mc/preference_strength": ("nats", "neither", "difference between the contexts of a pair before any scale"),
    "mc/pref_span_corr": ("1", "higher", "the same with sign · tanh(margin), all pairs pooled"),
    "mc/pref_score_corr": ("1", "higher", "Pearson's correlation of a span's last score with its lod_delta"),
}  # fmt: skip


def lens_metrics(lens: LensPass, paired: PairedNLL) -> StepMetrics:
    """Return the metrics of scores and, with two or more variants, of preference pairs."""
    metrics = score_metrics(lens, paired)
    return metrics if lens.pairs is None else metrics | pair_metrics(lens.pairs, lens.scale_nats)


def score_metrics(lens: LensPass, paired: PairedNLL) -> StepMetrics:
    """Return size and spread of the scores, and their correlation with the ΔNLL of collapsed spans."""
    scores, prefix = lens.scores.detach().float(), lens.prefix
    delta, followers = (part[:, : prefix.length] for part in span_delta(paired))
    mean = masked_mean(scores, prefix.valid, dim=1)[:, None]
    spread = masked_mean((scores - mean).square(), prefix.valid, dim=1).sqrt()
    return StepMetrics(
        means={
            "mc/policy_score_abs_mean": masked_sum(scores.abs(), prefix.valid),
            "mc/policy_score_std_mean": masked_sum(spread, torch.ones_like(spread, dtype=torch.bool)),
        },
        moments={"mc/pref_score_corr": moments(scores, delta, (followers > 0) & (prefix.lod > 0))},
    )


def pair_metrics(pairs: PreferencePairs, scale_nats: Tensor) -> StepMetrics:
    """Return agreement and correlation of scores with the signs of preference pairs."""
    signed = pairs.sign * torch.tanh(pairs.margin_nats / scale_nats)[..., None]
    vote = torch.where(pairs.mask, pairs.sign * pairs.score.detach(), 0.0).sum(dim=-1)
    correlation = pearson(pairs.score, pairs.sign, pairs.mask)
    return StepMetrics(
        means={
            "mc/preference_agreement": masked_sum(ranked_correctly(vote), pairs.exists),
            "mc/preference_strength": masked_sum(pairs.margin_nats, pairs.exists),
        },
        sums={"mc/preference_pair_count": pairs.exists.sum().double()},
        samples={"mc/preference_corr": correlation.flatten().float()},
        moments={"mc/pref_span_corr": moments(pairs.score, signed, pairs.mask)},
    )
