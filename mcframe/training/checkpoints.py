"""Checkpoints of an engine: what is in their files, whether it is finite, and how a run resumes from it bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from mcframe.errors import UserError
from mcframe.training import state_files
from mcframe.training.checkpoint_folder import Checkpoint, checkpoints
from mcframe.training.checkpoint_writer import CheckpointWriter, WriteJob, prepare_folder
from mcframe.training.engine import Engine, barrier
from mcframe.training.engine_state import put, take
from mcframe.training.random_states import random_states
from mcframe.training.rank_state import own_state

UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, SafetensorError)
"""Exceptions for files that are damaged, missing or of another model."""


def save(
    writer: CheckpointWriter,
    engine: Engine,
    run_dir: Path,
    position: Mapping[str, Any],
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    keep: int,
) -> None:
    """Copy the state to memory and start to write it; `writer.wait` returns the folder. Collective.

    Args:
        writer: The writer of this rank. No checkpoint may be in flight.
        engine: The engine.
        run_dir: The run directory.
        position: `tokens`, the bindings and the data of the run; see `mcframe.training.resume_rules`.
        shared: State that is equal on all ranks.
        own: State of this rank.
        keep: The number of checkpoints to keep.

    Raises:
        UserError: A tensor is not finite on some rank.
    """
    rank, tokens = dist.get_rank(), position["tokens"]
    tensors, state = take(engine, writer.buffers)
    check_finite(tensors, tokens, run_dir)
    for key, value in {"shared": shared, "own": {**own, "random": random_states()}}.items():
        state[key] = state_files.encode(value, key, tensors)
    if rank == 0:
        prepare_folder(run_dir, tokens)
    barrier()
    facts = {**position, "world_size": dist.get_world_size(), "zero_stage": engine.stage}
    writer.start(
        WriteJob(run_dir, tokens, lambda folder: [state_files.write(folder, rank, tensors, state).name], facts, keep)
    )


def load(engine: Engine, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load weights, optimizer and schedule, and return `shared` and `own` of `save`. Collective.

    Random states stay as they are; those of the checkpoint are `own["random"]`.

    Raises:
        UserError: The files are damaged, or do not fit the model, or a state of the optimizer cannot be carried to
            these ranks and this ZeRO stage.
    """
    try:
        state = state_files.read(checkpoint.path)
        put(engine, state)
        return state.value(0, "shared"), own_state(state, engine.stage)
    except UNREADABLE as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{checkpoint.path} cannot be loaded: {first}",
            remedy="If the model was changed, start a new run with --resume never. If files are damaged, remove the "
            "folder to resume from the checkpoint before it.",
        ) from error


def check_finite(tensors: Mapping[str, Tensor], tokens: int, run_dir: Path) -> None:
    """Raise UserError, on every rank, if a weight or an optimizer state of any rank is not finite. Collective.

    Args:
        tensors: The tensors of this rank by name, see `mcframe.training.engine_state`. Buffers may hold masks.
        tokens: Dataset tokens so far.
        run_dir: The run directory.
    """
    # The extremes of a tensor with a NaN are NaN: no tensor of its size is allocated.
    bad = [
        name
        for name, each in tensors.items()
        if name.startswith(("weights/", "optimizer/")) and each.is_floating_point() and each.numel()
        and not torch.stack(each.aminmax()).isfinite().all()
    ]  # fmt: skip
    found = f"{bad[0]}" + (f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else "") if bad else ""
    everywhere = [found] * dist.get_world_size()
    if len(everywhere) > 1:
        dist.all_gather_object(everywhere, found)
    rank, named = next(((rank, each) for rank, each in enumerate(everywhere) if each), (0, ""))
    if named:
        kept = checkpoints(run_dir)
        raise UserError(
            f"{named} is not finite on rank {rank} after {tokens:,} tokens; no checkpoint is written",
            remedy=(f"{kept[-1].path} is kept: " if kept else "")
            + "lower optimizer.lr, and optimizer.muon.lr with Muon, or lengthen the warm-up of the schedule, and "
            "repeat the command.",
        )
