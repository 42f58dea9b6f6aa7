"""The parameter groups of a run: what its modules declare, checked, and as the optimizer takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mcframe.config.training_schema import OptimizerConfig
from mcframe.errors import UserError
from mcframe.hookspecs import ParamGroup
from mcframe.interfaces.param_groups import group_parameters
from mcframe.training.train_step import TrainStep


@dataclass(frozen=True)
class PartGroup:
    """Trained parameters of one part of a run that the optimizer treats alike.

    Attributes:
        part: `base`, `gistnet`, `lensnet` or `loss NAME`.
        group: What the module declares, without frozen parameters.
        use_muon: Whether Muon trains them.
        lr: Peak learning rate.
        weight_decay: Weight decay.
    """

    part: str
    group: ParamGroup
    use_muon: bool
    lr: float
    weight_decay: float

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(int(getattr(each, "ds_numel", each.numel())) for each in self.group.parameters)

    def __str__(self) -> str:
        name = "Muon" if self.use_muon else "AdamW"
        return f"{self.part} {self.group.role}: {self.count:,} parameters, {name} at learning rate {self.lr:g}"


def param_groups(step: TrainStep, config: OptimizerConfig) -> list[PartGroup]:
    """Return the parameter groups of a step.

    Raises:
        UserError: A trained parameter is in no group or in more than one.
    """
    found = []
    for part, scaled_as, module in _parts(step):
        for group in _declared(module):
            trained = tuple(each for each in group.parameters if each.requires_grad)
            if not trained:
                continue
            use_muon = config.name == "muon" and group.role == "matrix"
            peak = config.muon_lr if use_muon else config.lr
            scale = group.lr_scale * config.lr_scale.get(scaled_as, 1.0)
            trained_group = ParamGroup(group.role, trained, group.weight_decay, group.lr_scale)
            decay = config.weight_decay if group.weight_decay else 0.0
            found.append(PartGroup(part, trained_group, use_muon, peak * scale, decay))
    _check_complete(step, found)
    return found


def optimizer_groups(step: TrainStep, groups: Sequence[PartGroup]) -> list[dict[str, Any]]:
    """Return the groups as the optimizer takes them: Muon's first, groups of equal settings merged."""
    settings = {id(each): group for group in groups for each in group.group.parameters}
    merged: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in step.parameters():  # the order of the module, which checkpoints rely on
        if (group := settings.get(id(parameter))) is not None:
            merged.setdefault((group.use_muon, group.lr, group.weight_decay), []).append(parameter)
    return [
        {"params": parameters, "use_muon": use_muon, "lr": lr, "weight_decay": decay}
        for (use_muon, lr, decay), parameters in sorted(merged.items(), key=lambda item: not item[0][0])
    ]


def _parts(step: TrainStep) -> Iterator[tuple[str, str, nn.Module]]:
    """Iterate over the name of each part, its key in `optimizer.lr_scale`, and its module."""
    for name, module in step.model.parts.items():
        yield name, name, module
    for loss in step.losses.each():
        yield f"loss {loss.name}", loss.part or "", loss


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
