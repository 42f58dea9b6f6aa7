"""Build the optimizer that DeepSpeed runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer


def build_optimizer(section: Mapping[str, Any], groups: list[dict[str, Any]], offload: bool) -> Optimizer:
    """Return AdamW, or Muon with AdamW for the groups without `use_muon`.

    DeepSpeed would select Muon's parameters by their names. It is passed a finished optimizer instead.

    Args:
        section: `optimizer` of DeepSpeed's configuration.
        groups: Parameter groups with their learning rate and weight decay.
        offload: Whether the optimizer's state is in the CPU's memory.
    """
    params = dict(section["params"])
    adam, options = _adam(params, offload)
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # ZeRO reads it
    if section["type"] != "Muon":
        plain = [{name: value for name, value in group.items() if name != "use_muon"} for group in groups]
        optimizer: Optimizer = adam(plain, **params, **options)
        return optimizer
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    keys = {True: ("momentum", "ns_method"), False: ("betas", "eps")}
    for group in groups:
        group |= {key: params[key] for key in keys[group["use_muon"]] if key in params}
    muon: Optimizer = MuonWithAuxAdam(groups, adam_optimizer=adam, adam_optimizer_kwargs=options)
    return muon


def _adam(params: dict[str, Any], offload: bool) -> tuple[Any, dict[str, Any]]:
    """Return the class of Adam and its options, and remove the keys that select them."""
    if params.pop("torch_adam", False):
        return torch.optim.AdamW, {"foreach": params.pop("foreach", None)}
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    return (DeepSpeedCPUAdam, {"adamw_mode": True}) if offload else (FusedAdam, {"adam_w_mode": True})
