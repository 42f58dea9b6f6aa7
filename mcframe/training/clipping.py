"""Gradient clipping by part, so that no part's gradient scales the update of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from mcframe.errors import UserError
from mcframe.training.param_groups import PartGroup


class PartClipping:
    """Clips the gradient of each part of a run to a norm of its own, at every ZeRO stage.

    DeepSpeed clips all gradients by their joint norm: the losses of LensNet would scale the update of the base model.
    DeepSpeed's own computation of norms is kept, and its clipping gets the norm of the part that a group belongs to.

    Args:
        wrapped: The DeepSpeed engine.
        groups: The parameter groups of all parts.
        limit: Largest norm.

    Attributes:
        norms: Norm of each part's gradient in the last step, before clipping. Does not synchronise with the host.
    """

    def __init__(self, wrapped: Any, groups: Sequence[PartGroup], limit: float) -> None:
        self.norms: Mapping[str, Tensor] = {}
        optimizer = wrapped.optimizer
        if not wrapped.zero_optimization():
            self._limit, self._parameters = limit, dict[str, list[Tensor]]()
            for group in groups:
                self._parameters.setdefault(group.part, []).extend(group.group.parameters)
            wrapped.clip_fp32_gradients = self._clip
            return
        flat = getattr(optimizer, "fp16_groups", None) or getattr(optimizer, "bit16_groups", None)
        if flat is None or not hasattr(optimizer, "unscale_and_clip_grads"):
            raise UserError(
                f"optimizer.gradient_clipping: {type(optimizer).__name__} of DeepSpeed clips all parts jointly",
                binding="deepspeed.settings",
                remedy="Remove data_types from deepspeed.settings, or set deepspeed.zero_stage = 2.",
            )
        parts = {id(parameter): group.part for group in groups for parameter in group.group.parameters}
        self._part_of_group = [parts[id(parameters[0])] for parameters in flat]
        self._found: list[Tensor] = []
        self._index = 0
        for name in ("get_grad_norm_direct", "complete_grad_norm_calculation_for_cpu_offload"):
            setattr(optimizer, name, self._recorded(getattr(optimizer, name)))
        optimizer.unscale_and_clip_grads = self._clipped(optimizer.unscale_and_clip_grads)

    @property
    def total(self) -> Tensor | None:
        """Norm of the complete gradient; None before the first step."""
        return torch.linalg.vector_norm(torch.stack(list(self.norms.values()))) if self.norms else None

    def _clip(self) -> None:
        """Clip without ZeRO."""
        self.norms = {
            part: torch.nn.utils.clip_grad_norm_(parameters, self._limit)
            for part, parameters in self._parameters.items()
        }

    def _recorded(self, norm_of: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of DeepSpeed that computes the norm of a group; its results are kept until the step."""

        @wraps(norm_of)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if len(self._found) == len(self._part_of_group):  # of the step before
                self._found, self._index = [], 0
            norm = norm_of(*arguments, **options)
            self._found.append(norm)
            return norm

        return wrapper

    def _clipped(self, clip: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """Return DeepSpeed's clipping of a group, which it calls once for each in order, with the norm of its part."""

        @wraps(clip)
        def wrapper(gradients: Any, joint_norm: Any) -> None:
            if self._index == 0:
                self.norms = self._combined()
            part = self._part_of_group[self._index]
            self._index += 1
            clip(gradients, self.norms[part])

        return wrapper

    def _combined(self) -> dict[str, Tensor]:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        found: dict[str, list[Tensor]] = {}
        for part, norm in zip(self._part_of_group, self._found, strict=True):
            found.setdefault(part, []).append(norm)
        return {part: combine_grad_norm_groups(norms) for part, norms in found.items()}
