"""The JSON that DeepSpeed is given, and the keys of it that would reach a measured trap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcframe.config.schema import RunConfig
from mcframe.config.training_schema import DeepSpeedConfig, OptimizerConfig
from mcframe.errors import UserError

RESERVED_DEEPSPEED_KEYS = {
    "train_batch_size": "run.batch_tokens",
    "train_micro_batch_size_per_gpu": "run.micro_batch",
    "gradient_accumulation_steps": "run.batch_tokens and run.micro_batch",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer.type": "optimizer.name",
    "optimizer.params.max_grad_norm": "optimizer.gradient_clipping",
    "optimizer.params.lr": "optimizer.lr",
    "optimizer.params.adam_lr": "optimizer.lr",
    "optimizer.params.muon_lr": "optimizer.muon_lr",
    "optimizer.params.momentum": "optimizer.muon_momentum",
    "optimizer.params.betas": "optimizer.betas",
    "optimizer.params.eps": "optimizer.eps",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
    "scheduler": "schedule.warmup_ratio and schedule.warmdown_ratio",
    "zero_optimization.stage": "deepspeed.zero_stage",
    "bf16.enabled": "deepspeed.precision",
    "fp16": "deepspeed.precision: bf16 needs no loss scaling, which fp16 would",
    "activation_checkpointing": "gpt.activation_checkpointing, which is non-reentrant",
    "compile.deepcompile": "nothing: it does not build everywhere and has open bugs",
}
"""Keys that have one place of their own in gin, so that the two cannot disagree."""


def engine_config(run_config: RunConfig, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a run. Raises UserError for keys that mcframe sets itself."""
    settings = run_config.deepspeed
    _refuse_owned(settings.settings)
    config: dict[str, Any] = {
        "train_batch_size": run_config.sequences,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": run_config.optimizer.clipping,
        "optimizer": _optimizer(run_config.optimizer),
        "zero_optimization": _zero(settings, run_config.optimizer),
        "bf16": {"enabled": settings.precision == "bf16"},
        # An op that compiles for minutes is no default; gin can ask for it.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }
    merged = _merge(config, settings.settings)
    if run_config.optimizer.name == "muon" and settings.zero_stage == 3:
        merged["zero_optimization"]["reduce_scatter"] = False
    return merged


def _optimizer(optimizer: OptimizerConfig) -> dict[str, Any]:
    adam = {"betas": list(optimizer.betas), "eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
    # torch's AdamW everywhere: DeepSpeed's own is compiled at the first start, for minutes on a CPU.
    if optimizer.name == "adamw":
        return {"type": "AdamW", "params": {"lr": optimizer.lr, **adam, "torch_adam": True}}
    muon = {"muon_lr": optimizer.muon_lr, "adam_lr": optimizer.lr, "momentum": optimizer.muon_momentum}
    return {"type": "Muon", "params": {"lr": optimizer.lr, **adam, **muon, "torch_adam": True}}


def _zero(settings: DeepSpeedConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return zero


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _refuse_owned(settings: Mapping[str, Any]) -> None:
    for path, binding in RESERVED_DEEPSPEED_KEYS.items():
        value: Any = settings
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            raise UserError(
                f"deepspeed.settings holds {path!r}, which mcframe sets from {binding}",
                binding="deepspeed.settings",
                remedy=f"take {path!r} out of deepspeed.settings and use {binding}",
            )
