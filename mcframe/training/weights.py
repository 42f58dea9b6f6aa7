"""Plain weights out of a checkpoint, in float32, on the CPU, whatever ZeRO stage wrote it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mcframe.errors import UserError
from mcframe.modeling.step import MegaContextStep
from mcframe.training.checkpoints import UNREADABLE, Checkpoint, find

PARTS = {
    "gpt": "base model", "gistnet": "GistNet", "lensnet": "LensNet", "reconstruction": "reconstruction",
    "added": "added objectives",
}  # fmt: skip
"""Submodules of the step, and what they are called."""


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Name -> float32 tensor of the whole step module. Raises UserError where the files are damaged."""
    try:
        stage, weights = checkpoint.facts["zero_stage"], {}
        if stage < 3:
            path = checkpoint.path / "mp_rank_00_model_states.pt"
            weights = torch.load(path, map_location="cpu", weights_only=False)["module"]
        if stage > 0:
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            # In float32; without the parts that do not learn, at ZeRO 1.
            learned = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
            weights = {**weights, **learned}
    except UNREADABLE as error:
        raise UserError(
            f"{checkpoint.path} cannot be read: {error}", remedy="name an older checkpoint, checkpoints/tokens-N"
        ) from error
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in weights.items()}


def start_from(model: MegaContextStep, place: str) -> str:
    """Give the model the weights of another run, part by part, where all names and shapes of a part fit.

    Returns what was taken, in words. Raises UserError where not even the base model fits.
    """
    checkpoint = find(Path(place))
    weights = load_weights(checkpoint)
    taken, fresh = [], []
    for part, name in PARTS.items():
        module: torch.nn.Module | None = getattr(model, part)
        if module is None or not (part == "gpt" or module.state_dict()):
            continue
        prefix = f"{part}."
        saved = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if misfit := _misfit(module, saved):
            if part == "gpt":
                raise UserError(
                    f"the base model of {checkpoint.path} does not fit this run's: {misfit}",
                    remedy="give both runs the same gpt.* and context.levels, or remove run.start_from",
                )
            fresh.append(name)
        else:
            module.load_state_dict(saved)
            taken.append(name)
    return f"{', '.join(taken)} of {checkpoint.path}" + (f"; new: {', '.join(fresh)}" if fresh else "")


def _misfit(module: torch.nn.Module, saved: dict[str, Tensor]) -> str | None:
    """The first thing that keeps `saved` from being the module's state, in words."""
    own = module.state_dict()
    if different := sorted(own.keys() ^ saved.keys()):
        return f"{different[0]} is in one of them only"
    for key, value in own.items():
        if value.shape != saved[key].shape:
            return f"{key} has the shape {list(value.shape)} here and {list(saved[key].shape)} there"
    return None
