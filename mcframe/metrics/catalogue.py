"""The catalogue of metrics: every name that the framework logs, its unit, its direction and what it means.

A name with a parameter is a pattern: `mc/lod_delta/{lod}` stands for `mc/lod_delta/1`, `mc/lod_delta/2` and so on.
The definitions are those of docs/concepts.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Better = Literal["lower", "higher", "neither"]

SAMPLE_SUFFIXES: dict[str, tuple[str, ...]] = {
    "mc/adv_delta": ("mean", "p95", "std"),
    "mc/preference_corr": ("mean", "max", "min"),
    "train/memory_gib": ("max",),
    "train/rss_gib": ("max",),
}
"""How the samples of a name are read back: `mc/adv_delta` becomes `mc/adv_delta_mean`, `_p95` and `_std`."""

DEFAULT_SUFFIXES = ("mean",)
"""How samples are read back whose name is not in `SAMPLE_SUFFIXES`."""

OF_THE_MACHINE = ("time", "tok_per_sec", "_ms", "mfu", "hfu", "_gib_max")
"""Ends of the names whose values the machine decides: clocks and memory. Equal runs differ in them."""


@dataclass(frozen=True)
class Metric:
    """A metric: its name or pattern, its unit, which way is better, and its meaning in one sentence."""

    name: str
    unit: str
    better: Better
    meaning: str


_SPANS = "eval/{evaluation}/lod{lod}_at_{length}"
_BUDGET = "eval/{evaluation}/at_{length}"

CATALOGUE: tuple[Metric, ...] = (
    # ---- what compression costs: delta = NLL(variant) - NLL(baseline at the same target) ---------
    Metric("mc/adv_delta_mean", "nats", "lower", "mean delta of a variant from its first gist entry on"),
    Metric("mc/adv_delta_p95", "nats", "lower", "95th percentile over variants of that mean delta"),
    Metric("mc/adv_delta_std", "nats", "neither", "standard deviation over variants of that mean delta"),
    Metric("mc/adv_delta_undefined", "variants", "neither", "variants without a gist entry, left out of adv_delta"),
    Metric("mc/gist_entry_delta/{lod}", "nats", "lower", "mean delta of the gist entries at this LOD"),
    Metric(
        "mc/lod_delta/{lod}",
        "nats",
        "lower",
        "mean delta of LOD0 entries up to context.horizon behind a span of this LOD, each counted for its nearest",
    ),
    Metric(
        "mc/delta_after/{distance}",
        "nats",
        "lower",
        "mean delta of LOD0 entries by distance to the nearest span on the left; the bucket ends at this distance",
    ),
    Metric("mc/tail_delta", "nats", "lower", "mean delta behind the cursor: what a user feels"),
    Metric("mc/gist_delta_penalty", "nats", "lower", "the ΔNLL penalty: relu of a variant's mean delta, averaged"),
    Metric("mc/gist_kl", "nats", "lower", "KL divergence from the baseline's prediction to the variant's"),
    Metric("mc/reconstruction_loss", "nats", "lower", "NLL of a block's tokens told from its gist alone"),
    Metric("loss/{objective}", "its own", "lower", "loss of an objective that a plug-in adds, unweighted"),
    Metric("loss/{objective}/{figure}", "its own", "neither", "another figure that such an objective reports"),
    # ---- working contexts ------------------------------------------------------------------------
    Metric("mc/lod_loss/{lod}", "nats", "lower", "mean NLL of the entries at this LOD"),
    Metric("mc/lod_count/{lod}", "entries", "neither", "entries at this LOD"),
    Metric("mc/wc_length", "entries", "neither", "entries of a working context"),
    Metric("mc/focus_iterations", "iterations", "neither", "iterations that the allocator used"),
    # ---- LensNet ---------------------------------------------------------------------------------
    Metric("mc/lens_loss", "1", "lower", "LensNet's objective"),
    Metric("mc/policy_score_abs_mean", "1", "neither", "mean absolute score"),
    Metric("mc/policy_score_std_mean", "1", "neither", "standard deviation of the scores in a context, averaged"),
    Metric(
        "mc/preference_corr_mean",
        "1",
        "higher",
        "correlation of scores with signed targets over the blocks on which a pair differs, mean over pairs",
    ),
    Metric("mc/preference_corr_max", "1", "higher", "the highest such correlation of a pair"),
    Metric("mc/preference_corr_min", "1", "higher", "the lowest such correlation of a pair"),
    Metric("mc/preference_corr_undefined", "pairs", "neither", "pairs whose correlation is undefined"),
    Metric("mc/preference_agreement", "fraction", "higher", "share of pairs that the scores rank rightly; ties half"),
    Metric(
        "mc/attribution_agreement",
        "fraction",
        "higher",
        "share of pairs that the uncompressed scores of what is collapsed, added up, rank rightly; ties half",
    ),
    Metric("mc/preference_pair_count", "pairs", "neither", "preference pairs"),
    Metric("mc/preference_strength", "nats", "neither", "difference between the two contexts of a pair, averaged"),
    Metric("mc/ema_kl", "nats", "neither", "KL divergence of LensNet's policy from that of its slow copy"),
    Metric("mc/pref_span_corr", "1", "higher", "correlation of scores with signed targets, all differing blocks"),
    Metric("mc/pref_score_corr", "1", "higher", "correlation of a collapsed span's score with its lod_delta"),
    # ---- time, per optimizer step ----------------------------------------------------------------
    # Means over the ranks and the steps of an interval, micro-batches summed. On a GPU by events in its stream.
    Metric("mc/build_ms", "ms", "lower", "building the node table"),
    Metric("mc/variant_ms", "ms", "lower", "sampling variants, their forward pass and its loss"),
    Metric("mc/variant_pack_ms", "ms", "lower", "gathering the variants' embeddings"),
    Metric("mc/lens_ms", "ms", "lower", "LensNet's forward pass and loss"),
    Metric("mc/other_ms", "ms", "lower", "train/step_ms without mc/controller_ms: the remainder of the step"),
    Metric("mc/controller_ms", "ms", "lower", "build, variant, variant_pack and lens together"),
    Metric(
        "mc/overhead_ms",
        "ms",
        "lower",
        "what no arithmetic of a network explains: sampling, unrolling, packing, metrics, LensNet's bookkeeping",
    ),
    Metric("train/step_ms", "ms", "lower", "an optimizer step, its data included, timed as a whole"),
    Metric("train/data_ms", "ms", "lower", "part of mc/other_ms: waiting for sequences and moving them to the device"),
    Metric("train/base_ms", "ms", "lower", "part of mc/other_ms: the uncompressed forward pass and its loss"),
    Metric("train/losses_ms", "ms", "lower", "part of mc/other_ms: objectives with passes of their own"),
    Metric("train/metrics_ms", "ms", "lower", "part of mc/other_ms: statistics of variants and adding them up"),
    Metric("train/backward_ms", "ms", "lower", "part of mc/other_ms: the backward pass of everything"),
    Metric("train/optimizer_ms", "ms", "lower", "part of mc/other_ms: DeepSpeed's step"),
    Metric("train/validation_ms", "ms", "lower", "one validation; beside the step, logged with it"),
    Metric("train/checkpoint_ms", "ms", "lower", "writing one checkpoint, barriers included; beside the step"),
    # ---- training --------------------------------------------------------------------------------
    Metric("train/loss", "nats", "lower", "the objective that is minimised"),
    Metric("train/loss_lod0", "nats", "lower", "next-token NLL of the uncompressed baseline"),
    Metric("train/lr", "1", "neither", "learning rate"),
    Metric("train/grad_norm", "1", "neither", "norm of the gradient before clipping"),
    Metric(
        "train/update_ratio/{module}",
        "fraction",
        "neither",
        "norm of what a module's weights changed by since the last line, over their norm; estimated from a sample",
    ),
    Metric("train/tok_per_sec", "tokens/s", "higher", "dataset tokens a second, all ranks"),
    Metric("train/mfu", "fraction", "higher", "share of the device's peak FLOP/s: 0.41 is 41 %; every context counts"),
    Metric("train/hfu", "fraction", "higher", "the same with what the backward pass computes a second time"),
    Metric("train/memory_gib_max", "GiB", "neither", "peak of a GPU's tensors in the interval, of the rank with most"),
    Metric("train/rss_gib_max", "GiB", "neither", "peak resident memory of a process so far, of the rank with most"),
    Metric("train/tokens", "tokens", "neither", "dataset tokens so far"),
    Metric("train/tokens_per_step", "tokens", "neither", "dataset tokens of an optimizer step, all ranks"),
    Metric("train/grad_accum_steps", "micro-batches", "neither", "micro-batches of an optimizer step, per rank"),
    Metric("mc/grad_accum_steps", "micro-batches", "neither", "the same as train/grad_accum_steps"),
    # ---- validation ------------------------------------------------------------------------------
    Metric("val/loss", "nats", "lower", "next-token NLL on held-out documents, uncompressed"),
    Metric("val/bpb", "bits/byte", "lower", "the same in bits per byte of text"),
    # ---- evaluations: controls -------------------------------------------------------------------
    Metric(f"{_SPANS}/delta/{{condition}}/{{where}}", "nats", "lower", "mean paired delta of a condition"),
    Metric(
        f"{_SPANS}/recovery/{{condition}}/{{where}}",
        "fraction",
        "higher",
        "1 - delta of the condition / delta of drop, the cheaper of drop and its twin; where drop costs something",
    ),
    Metric(
        f"{_SPANS}/gist_minus/{{condition}}/{{where}}", "nats", "lower", "delta of gist minus delta of the condition"
    ),
    Metric(f"{_SPANS}/accuracy/{{condition}}/{{where}}", "fraction", "higher", "likeliest token right, by condition"),
    Metric(f"{_SPANS}/nll/full/{{where}}", "nats", "lower", "uncompressed NLL of the same targets"),
    Metric(f"{_SPANS}/targets/{{where}}", "targets", "neither", "targets that were judged"),
    Metric(f"{_SPANS}/documents/{{where}}", "documents", "neither", "documents that they come from"),
    Metric(f"{_SPANS}/entries", "entries", "neither", "entries of a working context"),
    # ---- evaluations: focus ----------------------------------------------------------------------
    Metric(
        f"{_BUDGET}/gain/{{condition}}", "fraction", "higher", "focus gain: 1 = as good as the oracle, 0 = as random"
    ),
    Metric(
        f"{_BUDGET}/lens_minus/{{condition}}/{{strategy}}", "nats", "lower", "NLL of lens minus NLL of the strategy"
    ),
    Metric(f"{_BUDGET}/nll/{{condition}}/{{strategy}}", "nats", "lower", "NLL behind the cursor by strategy"),
    Metric(f"{_BUDGET}/delta/{{condition}}/{{strategy}}", "nats", "lower", "the same minus the uncompressed NLL"),
    Metric(
        f"{_BUDGET}/accuracy/{{condition}}/{{strategy}}", "fraction", "higher", "likeliest token right, by strategy"
    ),
    Metric(f"{_BUDGET}/entries/{{strategy}}", "entries", "neither", "entries of the strategy's contexts"),
    Metric(f"{_BUDGET}/targets", "targets", "neither", "targets behind the cursor that were judged"),
    Metric(f"{_BUDGET}/documents", "documents", "neither", "documents that they come from"),
)

_PARAMETERS = {
    "evaluation": r"\w+",
    "length": r"\d+(?:\.\d+)?",
    "condition": "full|drop|mean|swap|gist|drop_twin|mean_twin",
    "where": r"tail|evidence|behind|gist_entry|\d+",
    "module": r"\w+(?:\.\w+)*",
    "strategy": "full|random|recency|surprise|lens|oracle",
}
"""What a parameter of a pattern may be; any other is a number."""


def pattern(name: str) -> re.Pattern[str]:
    """Matches, as a whole, what a name or pattern of the catalogue stands for."""
    return re.compile(re.sub(r"\{(\w+)\}", lambda p: f"({_PARAMETERS.get(p[1], '0|[1-9][0-9]*')})", name))


_EXACT = {metric.name: metric for metric in CATALOGUE if "{" not in metric.name}
_PATTERNS = [(pattern(metric.name), metric) for metric in CATALOGUE if "{" in metric.name]


@lru_cache(maxsize=1024)
def describe(name: str) -> Metric:
    """The catalogue's entry for a logged name, such as `mc/lod_delta/{lod}` for `mc/lod_delta/2`.

    The bounds of an evaluation's interval, `_low` and `_high`, are described by what they bound.
    Raises KeyError where the catalogue has none.
    """
    if name.startswith("eval/"):
        name = name.removesuffix("_low").removesuffix("_high")
    if name in _EXACT:
        return _EXACT[name]
    for matcher, metric in _PATTERNS:
        if matcher.fullmatch(name):
            return metric
    raise KeyError(name)
