"""Objectives that plug-ins add to a training step."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from mcframe.context.step_metrics import StepMetrics, masked_sum
from mcframe.errors import UserError
from mcframe.hookspecs import Loss, LossTerm, StepView
from mcframe.registry.checks import check_shape, raise_contract_error


class AddedObjectives(nn.Module):
    """Objectives by name: their weighted sum, and what they log.

    lacking   what this run has not, of what an objective may need; those that do are left out: `left_out[name] = need`
    A module of its own, so that parameters of objectives are trained and lie in checkpoints as `added.NAME...`.
    Raises UserError where a name is taken, or is none.
    """

    def __init__(self, objectives: Sequence[Loss], lacking: Collection[str] = ()) -> None:
        super().__init__()
        self.left_out: dict[str, str] = {}
        names = [objective.name for objective in objectives]
        for name in names:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or hasattr(self, name):
                raise UserError(
                    f"an objective is called {name!r}; its metrics are to be loss/NAME",
                    remedy="give it a name of letters, digits and underscores, such as 'my_term'",
                )
            if names.count(name) > 1:
                raise UserError(
                    f"two objectives are called {name!r}, so their metrics would have the same names",
                    remedy="remove one from run.added_losses, or give one of them another name",
                )
        for objective, name in zip(objectives, names, strict=True):
            if objective.needs in lacking:
                self.left_out[name] = objective.needs
            else:
                self.add_module(name, objective)

    def __len__(self) -> int:
        return len(self._modules)

    def forward(self, view: StepView) -> tuple[Tensor, StepMetrics]:
        """What they add to the loss, a scalar, and their statistics."""
        total, statistics = view.baseline.nll.new_zeros(()), StepMetrics()
        for name, module in self.named_children():
            assert isinstance(module, Loss)
            term = module(view)
            if not isinstance(term, LossTerm):
                raise_contract_error(
                    module, "forward", f"returned a value of type {type(term).__name__}; asked is a LossTerm"
                )
            check_shape(module, "forward", "a LossTerm whose loss is [B]", term.loss, view.baseline.inputs.shape[:1])
            total = total + module.weight * term.loss.float().mean()
            figures: dict[str, object] = {"": term.loss, **term.metrics}
            for label, values in figures.items():
                if not isinstance(values, Tensor):
                    told = f"returned a LossTerm whose metric {label!r} is a value of type {type(values).__name__}"
                    raise_contract_error(module, "forward", f"{told}; asked is a tensor")
                full = f"loss/{name}/{label}".rstrip("/")
                statistics.means[full] = masked_sum(values, ~torch.isnan(values))
        return total, statistics
