"""The panels of a dashboard, once: TensorBoard's layout and wandb's workspace are both made of them.

A panel names metrics of the catalogue; a pattern, such as `mc/lod_delta/{lod}`, stands for all of its metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mcframe.metrics.catalogue import pattern

AXIS = "train/tokens"


@dataclass(frozen=True)
class Panel:
    """Curves in one picture: a title with their unit, and names or patterns of the catalogue."""

    title: str
    metrics: tuple[str, ...]

    @property
    def regex(self) -> str:
        """Matches the whole name of every metric of the panel, in Python's dialect and in JavaScript's."""
        return f"^({'|'.join(pattern(name).pattern for name in self.metrics)})$"

    @property
    def named(self) -> bool:
        """Does it name every metric in full?"""
        return not any("{" in name for name in self.metrics)


GROUPS: dict[str, tuple[Panel, ...]] = {
    "Loss and validation": (
        Panel("Loss (nats)", ("train/loss", "train/loss_lod0")),
        Panel("Validation (bits/byte)", ("val/bpb",)),
        Panel("Validation (nats)", ("val/loss",)),
        Panel("Loss by LOD (nats)", ("mc/lod_loss/{lod}",)),
        Panel("Gradient norm", ("train/grad_norm",)),
        Panel("Learning rate", ("train/lr",)),
        Panel("Change of weights by module (fraction)", ("train/update_ratio/{module}",)),
    ),
    "What gists cost": (
        Panel("ΔNLL behind the cursor (nats)", ("mc/tail_delta",)),
        Panel("ΔNLL behind a span, by its LOD (nats)", ("mc/lod_delta/{lod}",)),
        Panel("ΔNLL of gist entries, by LOD (nats)", ("mc/gist_entry_delta/{lod}",)),
        Panel("ΔNLL by distance behind a span (nats)", ("mc/delta_after/{distance}",)),
        Panel("ΔNLL of variants (nats)", ("mc/adv_delta_mean", "mc/adv_delta_p95", "mc/adv_delta_std")),
        Panel(
            "Objectives of gists (nats)",
            ("mc/gist_delta_penalty", "mc/gist_kl", "mc/reconstruction_loss"),
        ),
    ),
    "LensNet": (
        Panel("LensNet's loss", ("mc/lens_loss",)),
        Panel("Scores", ("mc/policy_score_abs_mean", "mc/policy_score_std_mean")),
        Panel(
            "Preference correlation",
            ("mc/preference_corr_mean", "mc/preference_corr_max", "mc/preference_corr_min"),
        ),
        Panel("Scores against cost, and spans of pairs (correlation)", ("mc/pref_score_corr", "mc/pref_span_corr")),
        Panel("Pairs ranked rightly (fraction)", ("mc/preference_agreement", "mc/attribution_agreement")),
        Panel("Difference of a pair (nats)", ("mc/preference_strength",)),
        Panel("Preference pairs", ("mc/preference_pair_count",)),
        Panel("Policy KL (nats)", ("mc/ema_kl",)),
    ),
    "Working contexts": (
        Panel("Length (entries)", ("mc/wc_length",)),
        Panel("Entries by LOD", ("mc/lod_count/{lod}",)),
        Panel("Allocator (iterations)", ("mc/focus_iterations",)),
    ),
    "Time of a step": (
        Panel("Base model and the rest (ms)", ("mc/other_ms",)),
        Panel("Controller (ms)", ("mc/controller_ms",)),
        Panel("Gathering embeddings (ms)", ("mc/variant_pack_ms",)),
        Panel("Parts of the controller (ms)", ("mc/build_ms", "mc/variant_ms", "mc/variant_pack_ms", "mc/lens_ms")),
        Panel("Overhead (ms)", ("mc/overhead_ms",)),
        Panel("Step (ms)", ("train/step_ms",)),
        Panel(
            "Parts of the rest (ms)",
            (
                "train/base_ms",
                "train/losses_ms",
                "train/backward_ms",
                "train/optimizer_ms",
                "train/data_ms",
                "train/metrics_ms",
            ),
        ),
        Panel("Beside the step (ms)", ("train/validation_ms", "train/checkpoint_ms")),
    ),
    "Throughput": (
        Panel("Throughput (tokens/s)", ("train/tok_per_sec",)),
        Panel("MFU (fraction)", ("train/mfu",)),
        Panel("HFU (fraction)", ("train/hfu",)),
        Panel("Memory (GiB)", ("train/memory_gib_max", "train/rss_gib_max")),
        Panel("Tokens of a step", ("train/tokens_per_step",)),
        Panel("Gradient accumulation (micro-batches)", ("train/grad_accum_steps", "mc/grad_accum_steps")),
    ),
    "Evaluations": (
        Panel("Recovery (fraction)", ("eval/{evaluation}/lod{lod}_at_{length}/recovery/{condition}/{where}",)),
        Panel("Focus gain (fraction)", ("eval/{evaluation}/at_{length}/gain/{condition}",)),
    ),
}
"""The groups in their order, and the panels of each."""


def tensorboard_layout() -> dict[str, dict[str, list[object]]]:
    """For `SummaryWriter.add_custom_scalars`: category -> chart -> what it shows, tags as regular expressions."""
    return {group: {panel.title: ["Multiline", [panel.regex]] for panel in panels} for group, panels in GROUPS.items()}


def matching(metrics: Sequence[str], names: Iterable[str]) -> list[str]:
    """Those of `names` that metrics of the catalogue stand for, in the order of the metrics, then of their numbers."""
    names = sorted(names, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split("/")])
    return [name for metric in metrics for name in names if pattern(metric).fullmatch(name)]
