"""Renamed bindings, exports and commands, with their new names. Gone with 0.2."""

from __future__ import annotations

RENAMED_BINDINGS = {
    "gpt.rope_base": "positions.gaussian_rope.base",
    "gpt.placement": "positions.gaussian_rope.placement",
    "gpt.smoothing": "positions.gaussian_rope.smoothing",
    "run.sinks": "run.loggers",
    "run.added_objectives": "run.extra_losses",
    "run.added_losses": "run.extra_losses",
    "context.start_length": "context.length_start",
    "context.train_wc_length": "context.length_end",
    "context.anneal": "context.length_anneal",
    "context.mixed_lengths": "context.length_mixed",
    "data.validation_windows": "validation.windows",
    "data.validation_share": "data.validation_fraction",
    "task.recall.asked_blocks": "task.recall.question_blocks",
    "variants.lens_guided.random_share": "variants.lens_guided.random_fraction",
    "telemetry.tensorboard": "logging.tensorboard",
    "telemetry.wandb": "logging.wandb",
    "cadence.log_tokens": "logging.every",
    "cadence.eval_tokens": "validation.every",
    "cadence.evaluate_tokens": "evaluation.every",
    "cadence.sample_tokens": "sampling.every",
    "cadence.picture_tokens": "figures.every",
    "cadence.checkpoint_tokens": "checkpoint.every",
    "cadence.keep": "checkpoint.keep",
    "schedule.warm_up": "schedule.trapezoid.warmup_ratio",
    "schedule.warm_down": "schedule.trapezoid.warmdown_ratio",
    "schedule.final": "schedule.trapezoid.final_lr_ratio",
    "schedule.warmup_ratio": "schedule.trapezoid.warmup_ratio",
    "schedule.warmdown_ratio": "schedule.trapezoid.warmdown_ratio",
    "schedule.final_lr_ratio": "schedule.trapezoid.final_lr_ratio",
    "optimizer.name": "run.optimizer = @optimizer.adamw or @optimizer.muon",
    "optimizer.betas": "optimizer.adamw.betas or optimizer.muon.betas",
    "optimizer.eps": "optimizer.adamw.eps or optimizer.muon.eps",
    "optimizer.muon_lr": "optimizer.muon.lr",
    "optimizer.muon_momentum": "optimizer.muon.momentum",
    "objectives.baseline_weight": "loss.next_token.weight",
    "objectives.variant_weight": "loss.variants.weight",
    "objectives.gist_delta_weight": "loss.delta_penalty.weight",
    "objectives.gist_kl_weight": "loss.distillation.weight",
    "objectives.kl_contrast": "loss.distillation.contrast",
    "objectives.reconstruction_weight": "loss.reconstruction.weight",
    "objectives.reconstruction_blocks": "loss.reconstruction.blocks",
    "objectives.reconstruction_share": "loss.reconstruction.fraction",
    "objectives.lens_weight": "the weight of each loss that trains LensNet, such as loss.preference.weight",
    "objectives.lens_objective": "run.losses, with @loss.preference, @loss.span_utility or @loss.span_difference",
    "objectives.lens_judge": "lens_targets.condition",
    "objectives.lens_shuffle": "lens_targets.shuffle",
    "objectives.preference_scale": "lens_targets.scale_nats",
    "objectives.normalise_strength": "lens_targets.normalise",
    "objectives.strength_decay": "lens_targets.decay",
    "objectives.preference_sides": "lens_targets.sides",
    "objectives.hard_negative_gamma": "loss.preference.focal_gamma",
    "objectives.rank_weight": "loss.preference.rank_weight",
    "objectives.margin": "loss.preference.rank_margin",
    "objectives.temperature": "loss.preference.temperature",
    "objectives.attribution_weight": "loss.attribution.weight",
    "objectives.budget_weight": "loss.balance.weight",
    "objectives.policy_kl_weight": "loss.ema_kl.weight",
    "objectives.policy_decay": "loss.ema_kl.decay",
    "objectives.utility_scale": "loss.span_utility.scale_nats",
}
"""Old binding -> new binding, for bindings that no longer exist."""

REMOVED_BINDINGS = dict.fromkeys(
    ("evaluation.gist_quality.resamples", "evaluation.focus_quality.resamples"), "intervals are computed without draws"
)
"""Binding without a successor -> the reason."""

RENAMED_REFERENCES = {
    "evaluation.controls": "evaluation.gist_quality",
    "evaluation.focus": "evaluation.focus_quality",
}
"""Old name of an implementation -> its new name; the prefix of its parameters changes likewise."""

RENAMED_KINDS = {"objective": "loss", "sink": "logger"}
"""Old kind -> new kind, in references and in bindings."""

RENAMED_COMMANDS = {"ablate": "sweep"}
"""Old command of `mcframe` -> new command."""

RENAMED_OPTIONS = {"--drop-twin": "--drop-baseline", "--mean-twin": "--mean-baseline"}
"""Old option of `mcframe eval` -> new option."""

RENAMED_EXPORTS = {
    "Baseline": "UncompressedPass",
    "Findings": "EvalResult",
    "HeldOut": "EvalData",
    "Objective": "Loss",
    "Subject": "EvalModel",
    "Task": "SyntheticTask",
    "TaskBatch": "SyntheticBatch",
    "TelemetrySink": "MetricLogger",
    "Term": "LossTerm",
    "TextSourceContract": "TextSuite",
    "Variants": "VariantPass",
    "every_clause": "all_requirements",
}
"""Old name in `mcframe.hookspecs` or `mcframe.testing` -> new name."""

_SUITES = ("GistNet", "LensNet", "Allocator", "Variants", "Positions", "Tokenizer", "Task", "Evaluation")
RENAMED_EXPORTS |= {f"{kind}Contract": f"{kind}Suite" for kind in _SUITES}
RENAMED_EXPORTS |= {"ObjectiveContract": "LossSuite", "SinkContract": "LoggerSuite"}


def new_binding(name: str) -> str | None:
    """Return the new name of a binding `kind.name.parameter`, or None if it was not renamed."""
    if name in RENAMED_BINDINGS:
        return RENAMED_BINDINGS[name]
    owner, _, parameter = name.rpartition(".")
    renamed = new_reference(owner)
    return f"{renamed}.{parameter}" if renamed else None


def new_reference(name: str) -> str | None:
    """Return the new name of an implementation `kind.name`, or None if it was not renamed."""
    kind, _, item = name.partition(".")
    return RENAMED_REFERENCES.get(name) or (f"{RENAMED_KINDS[kind]}.{item}" if kind in RENAMED_KINDS else None)


def renamed_export(module: str, name: str) -> Exception:
    """Return the exception for a missing attribute of a module: an ImportError if `name` was renamed."""
    if name in RENAMED_EXPORTS:
        return ImportError(f"{module}.{name} has a new name: {RENAMED_EXPORTS[name]}. Import that instead.")
    return AttributeError(f"module {module!r} has no attribute {name!r}")
