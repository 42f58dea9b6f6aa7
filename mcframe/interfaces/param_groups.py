"""Parameter groups: a module declares how the optimizer treats each of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

Role = Literal["matrix", "embedding", "vector"]
"""`matrix` is a map between wide spaces, which Muon trains. AdamW trains the others."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that the optimizer treats alike.

    Attributes:
        role: What they are.
        parameters: The parameters.
        weight_decay: Whether weight decay applies.
        lr_scale: Factor on the learning rate.
    """

    role: Role
    parameters: tuple[nn.Parameter, ...]
    weight_decay: bool = True
    lr_scale: float = 1.0


class TrainableModule(nn.Module):
    """A module that declares its parameter groups."""

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups; every parameter that is trained is in exactly one.

        By default, weights of `nn.Embedding` are embeddings, parameters with fewer than two dimensions are vectors,
        and all others are matrices. Override it for tables and thin maps that are none of these:

            def param_groups(self):
                return group_parameters(self, embedding=[self.lod_table, self.score])
        """
        return group_parameters(self)


def group_parameters(
    module: nn.Module, *, embedding: Iterable[nn.Module | nn.Parameter | None] = ()
) -> list[ParamGroup]:
    """Return the parameter groups of a module and of the modules in it.

    Modules in it that declare `param_groups` themselves keep what they declare.

    Args:
        module: The module.
        embedding: Parameters, or modules all of whose parameters, are embeddings. None is skipped, and so are tensors
            that are not parameters, as in the moving average of a network.
    """
    listed = {
        id(parameter)
        for each in embedding
        if each is not None
        for parameter in (each.parameters() if isinstance(each, nn.Module) else [each])
    }
    groups: dict[tuple[Role, bool, float], dict[int, nn.Parameter]] = {}

    def add(role: Role, parameter: nn.Parameter, weight_decay: bool = True, lr_scale: float = 1.0) -> None:
        groups.setdefault((role, weight_decay, lr_scale), {})[id(parameter)] = parameter

    def visit(part: nn.Module) -> None:
        for parameter in part.parameters(recurse=False):
            if id(parameter) in listed or isinstance(part, nn.Embedding):
                add("embedding", parameter)
            else:
                add("matrix" if parameter.dim() >= 2 else "vector", parameter)
        for child in part.children():
            if isinstance(child, TrainableModule):
                for group in child.param_groups():
                    for parameter in group.parameters:
                        add(group.role, parameter, group.weight_decay, group.lr_scale)
            else:
                visit(child)

    visit(module)
    return [ParamGroup(role, tuple(found.values()), decay, scale) for (role, decay, scale), found in groups.items()]
