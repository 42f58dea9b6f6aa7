"""Weights of a checkpoint in float32 on the CPU, for every ZeRO stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.training.checkpoint_folder import Checkpoint, find
from mcframe.training.checkpoints import UNREADABLE
from mcframe.training.engine_state import weights
from mcframe.training.state_files import read
from mcframe.training.train_step import TrainStep

MODEL = "model."
"""Prefix of the model's weights in a checkpoint of the train step."""

TITLES = {"gpt": "base model", "gistnet": "GistNet", "lensnet": "LensNet"}


def load_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the state dict of the train step: float32 weights, buffers, and extra states of third-party modules.

    Raises:
        UserError: The files are damaged.
    """
    try:
        found = weights(read(checkpoint.path))
    except UNREADABLE as error:
        raise UserError(
            f"{checkpoint.path} cannot be read: {error}", remedy="pass an older checkpoint, checkpoints/tokens-N"
        ) from error
    return {name: value.float() if _is_floating(value) else value for name, value in found.items()}


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def model_weights(state: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of the model alone, under the names of `MegaContextModel.state_dict()`."""
    return {name.removeprefix(MODEL): value for name, value in state.items() if name.startswith(MODEL)}


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
    state = load_weights(checkpoint)
    loaded, new = [], []
    for prefix, title, module in _parts(step):
        saved = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if prefix == f"{MODEL}gpt.":
            if saved and not any(isinstance(value, Tensor) for value in saved.values()):
                continue  # frozen there, and read from its files here as well
            saved = _with_more_levels(module, saved)
        if mismatch := _mismatch(module, saved):
            if prefix == f"{MODEL}gpt.":
                raise UserError(
                    f"run.start_from: the base model of {checkpoint.path} does not fit this run: {mismatch}",
                    binding="run.start_from",
                    remedy="set the same gpt.* in both runs and no fewer context.levels here, or remove run.start_from",
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


def _with_more_levels(module: nn.Module, saved: dict[str, Any]) -> dict[str, Any]:
    """Return saved weights of a base model with the module's own rows for levels of detail that it has in addition."""
    own, grown = module.state_dict(), dict(saved)
    for key, value in saved.items():
        if key in own and key.endswith(("lod_embed.weight", "gist_bias_embed")):
            grown[key] = torch.cat((value, own[key][len(value) :].to(value)))
    return grown


def _mismatch(module: nn.Module, saved: dict[str, Any]) -> str | None:
    """Return the first reason why `saved` is not a state of the module, or None."""
    own = module.state_dict()
    if different := sorted(own.keys() ^ saved.keys()):
        return f"{different[0]} exists in one of them only"
    for key, value in own.items():
        if isinstance(value, Tensor) and value.shape != saved[key].shape:
            return f"{key}: expected shape {list(value.shape)}, got {list(saved[key].shape)}"
    return None
