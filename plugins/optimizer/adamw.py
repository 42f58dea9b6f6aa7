"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from mcframe.bounds import Decay, Positive
from mcframe.hookspecs import Optimizer, Role, UpdateRule

Betas = Annotated[Sequence[Decay], Field(min_length=2, max_length=2)]


class AdamW(Optimizer):
    """Adam with decoupled weight decay, for all parameters.

    Source:
        Decoupled Weight Decay Regularization (Loshchilov and Hutter, 2019).

    Args:
        betas: Decay rates of the two moments.
        eps: Added to the square root of the second moment.
        fused: Use DeepSpeed's implementation, which is compiled at the first start, for minutes on a CPU.
    """

    def __init__(self, *, betas: Betas = (0.9, 0.95), eps: Positive = 1e-8, fused: bool = False) -> None:
        self.options, self.fused = {"betas": tuple(betas), "eps": eps}, fused

    def update_rule(self, role: Role, lr: float) -> UpdateRule:
        """Return AdamW for every role."""
        return UpdateRule("AdamW", lr)

    def build(self, groups: list[dict[str, Any]], offload: bool) -> torch.optim.Optimizer:
        """Return torch's AdamW, with its fused kernel on a GPU, or DeepSpeed's if `fused`."""
        implementation, mode = adam_implementation(self.fused, offload, on_gpu(groups))
        for group in groups:
            del group["rule"]
        optimizer: torch.optim.Optimizer = implementation(groups, **self.options, **mode)
        return optimizer


def on_gpu(groups: Sequence[dict[str, Any]]) -> bool:
    """Return whether all parameters are on a GPU."""
    return all(parameter.device.type == "cuda" for group in groups for parameter in group["params"])


def adam_implementation(fused: bool, offload: bool, on_gpu: bool) -> tuple[Any, dict[str, Any]]:
    """Return a class of Adam, and its options: decoupled weight decay, and on a GPU one kernel for an update."""
    if not fused:
        return torch.optim.AdamW, {"fused": True} if on_gpu and not offload else {}
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    return (DeepSpeedCPUAdam, {"adamw_mode": True}) if offload else (FusedAdam, {"adam_w_mode": True})
