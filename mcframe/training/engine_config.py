"""DeepSpeed's configuration, and the keys of it that mcframe sets itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcframe.config.schema import RunConfig
from mcframe.config.training_schema import DeepSpeedConfig
from mcframe.errors import UserError, require
from mcframe.hookspecs import Optimizer
from mcframe.training.deepspeed_settings import check_settings

RESERVED_DEEPSPEED_KEYS = {
    "train_batch_size": "run.batch_tokens",
    "train_micro_batch_size_per_gpu": "run.micro_batch",
    "gradient_accumulation_steps": "run.batch_tokens and run.micro_batch",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "run.optimizer",
    "scheduler": "run.schedule",
    "zero_optimization.stage": "deepspeed.zero_stage",
    "bf16.enabled": "deepspeed.precision",
    "fp16": "deepspeed.precision: bf16 needs no loss scaling, which fp16 would",
    "activation_checkpointing": "gpt.activation_checkpointing, which is non-reentrant",
    "compile.deepcompile": "nothing: it does not build everywhere and has open bugs",
}
"""Keys that mcframe sets, or that lead to a known failure, with the gin binding to use instead."""


def engine_config(run_config: RunConfig, optimizer: Optimizer, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run.

    Raises:
        UserError: `deepspeed.settings` has a key that mcframe sets itself.
    """
    settings = run_config.deepspeed
    _refuse_owned(settings.settings)
    _refuse_nvme(settings.settings)
    config: dict[str, Any] = {
        "train_batch_size": run_config.sequences,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": gradient_clipping(run_config, optimizer),
        "zero_optimization": _zero(settings),
        "bf16": {"enabled": settings.precision == "bf16"},
        # DeepSpeed's own CPU optimizer compiles for minutes; `fused` of an optimizer selects it.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }
    merged = _merge(config, settings.settings)
    if isinstance(merged["zero_optimization"], dict):
        merged["zero_optimization"] |= optimizer.zero_settings(settings.zero_stage)
    return merged


def check_engine_config(run_config: RunConfig, optimizer: Optimizer) -> None:
    """Raise UserError unless DeepSpeed accepts `deepspeed.settings`, for any number of ranks, and `run.compile`."""
    stage = run_config.deepspeed.zero_stage
    require(
        stage < 3 or not run_config.compile, "run.compile", run_config.compile, "False at ZeRO 3",
        "Set run.compile = False, or deepspeed.zero_stage to 0, 1 or 2: hooks that gather weights cannot be compiled.",
    )  # fmt: skip
    check_settings(
        run_config.deepspeed.settings, engine_config(run_config, optimizer, 1, run_config.sequences)
    )  # fmt: skip


def gradient_clipping(run_config: RunConfig, optimizer: Optimizer) -> float:
    """Return the gradient norm to clip at; 0 for no clipping."""
    clipping = run_config.optimizer_config.gradient_clipping
    if clipping is None:
        return 0.0 if optimizer.replaces_gradients else 1.0
    return clipping


def _zero(settings: DeepSpeedConfig) -> dict[str, Any]:
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
                f"deepspeed.settings: {path!r} is set by mcframe from {binding}",
                binding="deepspeed.settings",
                remedy=f"Remove {path!r} from deepspeed.settings and use {binding}.",
            )


def _refuse_nvme(settings: Mapping[str, Any]) -> None:
    """Raise UserError for states on NVMe, or partly on the GPU: checkpoints are taken from the memory of one device."""
    zero = settings.get("zero_optimization")
    for name in ("offload_optimizer", "offload_param"):
        offload = zero.get(name) if isinstance(zero, Mapping) else None
        if isinstance(offload, Mapping) and (offload.get("device") == "nvme" or offload.get("ratio", 1.0) != 1.0):
            raise UserError(
                f"deepspeed.settings: expected zero_optimization.{name} in memory, got {dict(offload)}",
                binding="deepspeed.settings",
                remedy="Set its device to 'cpu', or remove it; omit ratio.",
            )
