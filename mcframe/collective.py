"""Errors of one rank that have to reach the others, which would wait for it in a collective for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from mcframe.errors import UserError

Returned = TypeVar("Returned")


class FailedElsewhere(Exception):
    """Another rank failed; it reports the error."""


def ranks() -> int:
    """Return the number of ranks, 1 without a group of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def fail_together(action: Callable[[], Returned], device: torch.device | str = "cpu") -> Returned:
    """Return `action()`, or raise on every rank if it raises on one. Collective.

    Args:
        action: Work of this rank alone. If it has collectives of its own, it has to fail on all ranks or on none.
        device: A device that the group of processes communicates on.

    Raises:
        UserError: The action raised one on some rank.
        FailedElsewhere: The action raised another exception, on other ranks only.
    """
    if ranks() == 1:
        return action()
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:  # noqa: BLE001 - raised again once every rank knows
        failure = error
    failed = torch.tensor([failure is not None], dtype=torch.int32, device=device)
    dist.all_reduce(failed)
    if not int(failed):
        return result
    texts: list[str | None] = [None] * ranks()
    # An evaluation may catch a UserError, and has to go the same way on every rank.
    dist.all_gather_object(texts, failure.message if isinstance(failure, UserError) else None)
    if failure is not None:
        raise failure
    message = next((text for text in texts if text is not None), None)
    raise FailedElsewhere if message is None else UserError(message)
