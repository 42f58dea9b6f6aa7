"""State of one rank that is not the engine's, carried to another number of ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from mcframe.metrics.accumulator import Accumulator
from mcframe.training.state_files import SavedState


def own_state(state: SavedState, zero_stage: int) -> dict[str, Any]:
    """Return this rank's `own` of a checkpoint; of another number of ranks, what can be carried of it.

    Every rank gets the unread logging interval of all, and callbacks their state on the rank with this number, or on
    rank 0. New ranks have no random states, and no sample of weights. At ZeRO 3 the sample depends on the partitions.

    Args:
        state: The files of the checkpoint.
        zero_stage: The ZeRO stage of this run.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    saved, saved_stage = len(state.facts), int(state.facts[0]["zero_stage"])
    source = rank if rank < saved else 0
    own: dict[str, Any] = state.value(source, "own")
    if 3 in (zero_stage, saved_stage) and (world, zero_stage) != (saved, saved_stage):
        own["weights"] = None
    if world != saved:
        own["accumulator"] = Accumulator.merge([state.value(each, "own")["accumulator"] for each in range(saved)])
        own["random"] = own["random"] if source == rank else None
    return own
