"""The interface of an optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from mcframe.interfaces.param_groups import Role


@dataclass(frozen=True)
class UpdateRule:
    """The treatment of the parameters of one role.

    Attributes:
        name: The algorithm, as the start-up summary prints it. Parameters of different rules are in different groups.
        lr: Peak learning rate, before the factors of parts and groups.
        states: Float32 values of state for each parameter value, for the estimate of memory.
    """

    name: str
    lr: float
    states: int = 2


class Optimizer(ABC):
    """Builds the optimizer that DeepSpeed runs. Factory: `factory()`. An example:

        class SGD(Optimizer):
            def update_rule(self, role, lr):
                return UpdateRule("SGD", lr, states=0)

            def build(self, groups, offload):
                return torch.optim.SGD(groups)

    `optimizer.lr`, `optimizer.weight_decay`, `optimizer.lr_scale` and the schedule apply to every optimizer.
    """

    max_zero_stage: int = 3
    """The highest ZeRO stage that it supports.

    From stage 1 on, DeepSpeed passes pieces of flattened parameters. An optimizer whose update of a value depends on
    other values of its matrix supports stage 0 only.
    """

    replaces_gradients: bool = False
    """True if DeepSpeed replaces gradients by updates before it clips them: clipping is refused, no norm is logged."""

    def update_rule(self, role: Role, lr: float) -> UpdateRule:
        """Return the treatment of parameters of a role.

        Args:
            role: `matrix`, `embedding` or `vector`.
            lr: `optimizer.lr`, the peak learning rate unless the rule has its own.
        """
        return UpdateRule(type(self).__name__, lr)

    def zero_settings(self, stage: int) -> dict[str, Any]:
        """Return keys of DeepSpeed's `zero_optimization` that it cannot run without at this stage."""
        return {}

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], offload: bool) -> torch.optim.Optimizer:
        """Return the optimizer.

        Args:
            groups: Parameter groups, as torch takes them: `params`, `lr`, `weight_decay`, and the name of their `rule`.
            offload: Whether its state is in the CPU's memory.
        """
