"""Streams of training sequences: the interface, and the base of those whose order needs no state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch


class WindowStream(Protocol):
    """An endless order of training sequences, numbered from 0, the same for any number of ranks."""

    window: int
    """T."""

    def take(self, indices: Sequence[int]) -> Tensor | SyntheticBatch:
        """Return sequences [n, T + 1] int64, for `packing.unpacked`; those of a task come with a loss mask.

        Args:
            indices: growing global indices, all of this rank.
        """

    def state(self) -> dict[str, Any]:
        """Return this rank's state after the sequences taken, in values of JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a merged state.

        Raises:
            UserError: The state belongs to another stream.
        """

    def merge(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one state made from those of all ranks."""


class StatelessWindows(ABC):
    """A stream whose sequence i is a function of i, so that the position is enough to resume."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what determines the order, for comparison in `restore`."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Check that the state belongs to this order; the position would otherwise mean nothing."""
        check_same_stream(self.state(), state)

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one of the states, which are equal on all ranks."""
        return dict(states[0])


def check_same_stream(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise UserError if a checkpoint's stream was `found`, and this run's stream is another one."""
    if dict(found) != dict(expected):
        raise UserError(
            f"data stream of the checkpoint: expected {dict(expected)}, got {dict(found)}",
            remedy="Restore the data, tokenizer, task, T and seed of the checkpoint, or start a new run.",
        )
