"""Muon."""

from __future__ import annotations

from typing import Any

import torch

from mcframe.bounds import Decay, Positive
from mcframe.hookspecs import Optimizer, Role, UpdateRule
from mcframe_plugins.optimizer.adamw import Betas, adam_implementation, on_gpu


class Muon(Optimizer):
    """Orthogonalised momentum for matrices, and AdamW for embeddings, heads and thin maps.

    DeepSpeed would select matrices by their names. Modules declare them instead, as parameter groups of role `matrix`.

    Source:
        Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024).

    Args:
        lr: Peak learning rate of matrices; `optimizer.lr` is that of all other parameters.
        momentum: Momentum of matrices.
        betas: Decay rates of AdamW's moments.
        eps: Epsilon of AdamW.
        fused: Use DeepSpeed's AdamW; see `optimizer.adamw`.
    """

    replaces_gradients = True

    def __init__(
        self,
        *,
        lr: Positive = 0.02,
        momentum: Decay = 0.95,
        betas: Betas = (0.9, 0.95),
        eps: Positive = 1e-8,
        fused: bool = False,
    ) -> None:
        self.lr, self.fused = lr, fused
        self._options = {"Muon": {"momentum": momentum}, "AdamW": {"betas": tuple(betas), "eps": eps}}

    def update_rule(self, role: Role, lr: float) -> UpdateRule:
        """Return Muon for matrices, and AdamW for other parameters."""
        return UpdateRule("Muon", self.lr, states=1) if role == "matrix" else UpdateRule("AdamW", lr)

    def zero_settings(self, stage: int) -> dict[str, Any]:
        """Return the setting without which Muon fails at stage 3."""
        return {"reduce_scatter": False} if stage == 3 else {}

    def build(self, groups: list[dict[str, Any]], offload: bool) -> torch.optim.Optimizer:
        """Return DeepSpeed's Muon, its groups first."""
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        for group in groups:
            rule = group.pop("rule")
            group |= {"use_muon": rule == "Muon", **self._options[rule]}
            for parameter in group["params"]:
                parameter.use_muon = group["use_muon"]  # ZeRO reads it
        groups.sort(key=lambda group: not group["use_muon"])
        adam, mode = adam_implementation(self.fused, offload, on_gpu(groups))
        muon: torch.optim.Optimizer = MuonWithAuxAdam(groups, adam_optimizer=adam, adam_optimizer_kwargs=mode)
        return muon
