"""Plain weights out of a checkpoint, in float32, on the CPU, whatever ZeRO stage wrote it."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.errors import UserError
from mcframe.training.checkpoints import UNREADABLE, Checkpoint


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Name -> float32 tensor of the whole step module. Raises UserError where the files are damaged."""
    try:
        if checkpoint.facts["zero_stage"] == 0:
            path = checkpoint.path / "mp_rank_00_model_states.pt"
            weights = torch.load(path, map_location="cpu", weights_only=False)["module"]
        else:
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
    except UNREADABLE as error:
        raise UserError(
            f"{checkpoint.path} cannot be read: {error}", remedy="name an older checkpoint, checkpoints/tokens-N"
        ) from error
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in weights.items()}
