"""The parameter groups of a run: declared by its modules, checked, and in the form that torch takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mcframe.config.training_schema import OptimizerConfig
from mcframe.errors import UserError
from mcframe.hookspecs import Optimizer, ParamGroup, UpdateRule
from mcframe.interfaces.param_groups import group_parameters
from mcframe.training.train_step import TrainStep


@dataclass(frozen=True)
class PartGroup:
    """Trained parameters of one part of a run that the optimizer treats alike.

    Attributes:
        part: `base`, `gistnet`, `lensnet` or `loss NAME`.
        group: What the module declares, without frozen parameters.
        rule: The optimizer's treatment of them.
        lr: Peak learning rate, with all factors.
        weight_decay: Weight decay.
        start: Fraction of training before which the learning rate is 0.
    """

    part: str
    group: ParamGroup
    rule: UpdateRule
    lr: float
    weight_decay: float
    start: float = 0.0

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(int(getattr(each, "ds_numel", each.numel())) for each in self.group.parameters)

    def __str__(self) -> str:
        name = f"{self.part} {self.group.role}"
        start = f" after {self.start:.0%} of training" if self.start else ""
        return f"{name}: {self.count:,} parameters, {self.rule.name} at learning rate {self.lr:g}{start}"


def param_groups(step: TrainStep, optimizer: Optimizer, config: OptimizerConfig) -> list[PartGroup]:
    """Return the parameter groups of a step.

    Raises:
        UserError: A trained parameter is in no group or in more than one.
    """
    found = []
    scales, starts = dict[str, float](config.lr_scale.items()), dict[str, float](config.lr_start.items())
    for part, scaled_as, module in step.named_parts():
        for group in _declared(module):
            trained = tuple(each for each in group.parameters if each.requires_grad)
            if not trained:
                continue
            rule = optimizer.update_rule(group.role, config.lr)
            scale = group.lr_scale * scales.get(scaled_as or "", 1.0)
            trained_group = ParamGroup(group.role, trained, group.weight_decay, group.lr_scale)
            decay = config.weight_decay if group.weight_decay else 0.0
            start = starts.get(scaled_as or "", 0.0)
            found.append(PartGroup(part, trained_group, rule, rule.lr * scale, decay, start))
    _check_complete(step, found)
    return found


def optimizer_groups(step: TrainStep, groups: Sequence[PartGroup]) -> list[dict[str, Any]]:
    """Return the groups as torch takes them, in the order of the module.

    Groups of one part are merged if they declare the same. The settings of a run play no role, so that a resumed run
    with other settings has the same groups.
    """
    settings = {id(each): group for group in groups for each in group.group.parameters}
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter in step.parameters():  # the order of the module, which checkpoints rely on
        if (group := settings.get(id(parameter))) is not None:
            declared = group.part, group.rule.name, group.group.lr_scale, group.group.weight_decay
            options = {"rule": group.rule.name, "lr": group.lr, "weight_decay": group.weight_decay}
            merged.setdefault(declared, {"params": [], **options})["params"].append(parameter)
    return list(merged.values())


def with_starts(optimizer: torch.optim.Optimizer, groups: Sequence[PartGroup]) -> torch.optim.Optimizer:
    """Note the `start` of each part in the groups of an optimizer, which holds the parameters themselves."""
    starts = {id(each): group.start for group in groups for each in group.group.parameters}
    for group in optimizer.param_groups:
        group["start"] = starts[id(group["params"][0])] if group["params"] else 0.0
    return optimizer


def lr_factors(
    groups: Sequence[dict[str, Any]], factor: Callable[[int], float], steps: int
) -> list[Callable[[int], float]]:
    """Return the factor on the learning rate of each group of an optimizer, as functions of the step.

    Args:
        groups: The optimizer's groups.
        factor: The schedule's factor.
        steps: Steps of the run.
    """

    def of(group: dict[str, Any]) -> Callable[[int], float]:
        return lambda step: factor(step) if step >= group.get("start", 0.0) * steps else 0.0

    return [of(group) for group in groups]


def _declared(module: nn.Module) -> Sequence[ParamGroup]:
    declare = getattr(module, "param_groups", None)
    groups: Sequence[ParamGroup] = group_parameters(module) if declare is None else declare()
    return groups


def _check_complete(step: TrainStep, groups: Sequence[PartGroup]) -> None:
    owners: dict[int, list[str]] = {}
    for group in groups:
        for each in group.group.parameters:
            owners.setdefault(id(each), []).append(f"{group.part} {group.group.role}")
    for name, parameter in step.named_parameters():
        holders = owners.get(id(parameter), [])
        if parameter.requires_grad and len(holders) != 1:
            raise UserError(
                f"parameter groups: expected {name.removeprefix('model.')} in one group, got "
                f"{' and '.join(holders) or 'none'}",
                remedy="Return every parameter of the module in exactly one group of param_groups().",
            )
