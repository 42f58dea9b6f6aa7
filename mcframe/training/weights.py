"""Weights of a checkpoint in float32 on the CPU, for every ZeRO stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.training.checkpoints import UNREADABLE, Checkpoint, find
from mcframe.training.train_step import TrainStep

MODEL = "model."
"""Prefix of the model's weights in a checkpoint of the train step."""

TITLES = {"gpt": "base model", "gistnet": "GistNet", "lensnet": "LensNet"}


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return name -> float32 tensor of the train step.

    Raises:
        UserError: The files are damaged.
    """
    try:
        stage, weights = checkpoint.facts["zero_stage"], {}
        if stage < 3:
            path = checkpoint.path / "mp_rank_00_model_states.pt"
            weights = torch.load(path, map_location="cpu", weights_only=False)["module"]
        if stage > 0:
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            # float32; at ZeRO 1 without the frozen parts.
            trained = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
            weights = {**weights, **trained}
    except UNREADABLE as error:
        raise UserError(
            f"{checkpoint.path} cannot be read: {error}", remedy="pass an older checkpoint, checkpoints/tokens-N"
        ) from error
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in weights.items()}


def model_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the model alone, under the names of `MegaContextModel.state_dict()`."""
    return {name.removeprefix(MODEL): tensor for name, tensor in weights.items() if name.startswith(MODEL)}


def start_from(step: TrainStep, path: str) -> str:
    """Load the weights of another run into a step, part by part, where all names and shapes of a part fit.

    Args:
        step: The step of the new run.
        path: A run directory or a checkpoint.

    Returns:
        A line about which parts were loaded.

    Raises:
        UserError: The base model does not fit.
    """
    checkpoint = find(user_path(path, "run.start_from"))
    weights = load_weights(checkpoint)
    loaded, new = [], []
    for prefix, title, module in _parts(step):
        saved = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if mismatch := _mismatch(module, saved):
            if prefix == f"{MODEL}gpt.":
                raise UserError(
                    f"run.start_from: the base model of {checkpoint.path} does not fit this run: {mismatch}",
                    binding="run.start_from",
                    remedy="set the same gpt.* and context.levels in both runs, or remove run.start_from",
                )
            new.append(title)
        else:
            module.load_state_dict(saved)
            loaded.append(title)
    return f"{', '.join(loaded)} of {checkpoint.path}" + (f"; new: {', '.join(new)}" if new else "")


def _parts(step: TrainStep) -> list[tuple[str, str, nn.Module]]:
    """Return prefix, title and module of each part of a step that has a state."""
    model = [(f"{MODEL}{name}.", title, getattr(step.model, name)) for name, title in TITLES.items()]
    losses = [(f"losses.{loss.name}.", f"loss {loss.name}", loss) for loss in step.losses.each()]
    return [
        (prefix, title, module)
        for prefix, title, module in (*model, *losses)
        if module is not None and (title == TITLES["gpt"] or any(True for _ in module.parameters()))
    ]


def _mismatch(module: nn.Module, saved: dict[str, Tensor]) -> str | None:
    """Return the first reason why `saved` is not a state of the module, or None."""
    own = module.state_dict()
    if different := sorted(own.keys() ^ saved.keys()):
        return f"{different[0]} exists in one of them only"
    for key, value in own.items():
        if value.shape != saved[key].shape:
            return f"{key}: expected shape {list(value.shape)}, got {list(saved[key].shape)}"
    return None
