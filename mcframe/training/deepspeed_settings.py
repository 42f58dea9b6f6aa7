"""Checks of `deepspeed.settings`: DeepSpeed itself ignores unknown keys, and fails late on values of a wrong type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from mcframe.errors import UserError, did_you_mean

_Type = Literal["fp32", "fp16", "bf16"]
_Section = dict[str, Any]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _FlopsProfiler(_Keys):
    enabled: bool = False
    recompute_fwd_factor: float = 0.0
    profile_step: PositiveInt = 1
    module_depth: int = -1
    top_modules: PositiveInt = 1
    detailed: bool = True
    output_file: str | None = None


class _AsynchronousIO(_Keys):
    block_size: PositiveInt = 1
    queue_depth: PositiveInt = 1
    intra_op_parallelism: PositiveInt = 1
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class _DataTypes(_Keys):
    grad_accum_dtype: _Type | None = None
    param_dtype: _Type | None = None
    buffer_dtype: _Type | None = None
    keep_in_fp32_modules: list[str] | Literal["auto"] = "auto"


class _Checkpoint(_Keys):
    tag_validation: str = "WARN"
    load_universal: bool = False
    use_node_local_storage: bool = False
    parallel_write: _Section | None = None
    writer: _Section | None = None


class _DeepSpeedKeys(_Keys):
    """The keys of DeepSpeed's JSON. Those of type `_Section` are checked by DeepSpeed's own models."""

    steps_per_print: PositiveInt | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    disable_python_gc: bool = False
    disable_allgather: bool = False
    prescale_gradients: bool = False
    managed_gradient_accumulation: bool = True
    gradient_predivide_factor: PositiveFloat = 1.0
    gradient_allreduce_op: Literal["mean", "sum"] = "mean"
    communication_data_type: _Type | None = None
    seq_parallel_communication_data_type: _Type = "fp32"
    zero_allow_untested_optimizer: bool = True
    zero_force_ds_cpu_optimizer: bool = False
    dataloader_drop_last: bool = False
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    flops_profiler: _FlopsProfiler | None = None
    aio: _AsynchronousIO | None = None
    data_types: _DataTypes | None = None
    checkpoint: _Checkpoint | None = None
    zero_optimization: _Section | None = None
    bf16: _Section | None = None
    torch_autocast: _Section | None = None
    comms_logger: _Section | None = None
    tensorboard: _Section | None = None
    wandb: _Section | None = None
    comet: _Section | None = None
    csv_monitor: _Section | None = None
    compile: _Section | None = None
    timers: _Section | None = None
    tensor_parallel: _Section | None = None
    data_efficiency: _Section | None = None


def check_settings(settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise UserError for a key of `deepspeed.settings` that DeepSpeed does not know, or a value it cannot use.

    Args:
        settings: `deepspeed.settings`.
        config: DeepSpeed's complete configuration, with the settings.
    """
    if not settings:
        return
    try:
        _DeepSpeedKeys(**settings)
        # DeepSpeed prints its search for devices when it is imported on a machine without a GPU.
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepspeed.runtime.config import DeepSpeedConfig

        sizes = ("train_batch_size", "gradient_accumulation_steps")  # they depend on the number of ranks
        DeepSpeedConfig({name: value for name, value in config.items() if name not in sizes})
    except ValidationError as error:
        raise _invalid(error, settings) from None
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"deepspeed.settings: DeepSpeed refuses the settings: {lines[0]}",
            remedy="Correct deepspeed.settings; https://www.deepspeed.ai/docs/config-json lists its keys.",
            binding="deepspeed.settings",
        ) from error


def _invalid(error: ValidationError, settings: Mapping[str, Any]) -> UserError:
    """Return the message for the first error of a model of keys."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    section = next((name for name, value in settings.items() if isinstance(value, dict) and path[0] in value), None)
    if section is not None and path[0] not in settings:  # DeepSpeed's own models have paths within their section
        path = [section, *path]
    shown = ".".join(path)
    if first["type"] == "extra_forbidden":
        near = did_you_mean(path[-1], _DeepSpeedKeys.model_fields) if len(path) == 1 else ""
        message, remedy = f"DeepSpeed has no key {shown!r}{near}", f"Correct or remove {shown!r}."
    else:
        rule = first["msg"].removeprefix("Input should be ")
        message, remedy = f"{shown}: expected {rule}, got {first['input']!r}", f"Correct {shown!r}."
    return UserError(f"deepspeed.settings: {message}", remedy=remedy, binding="deepspeed.settings")
