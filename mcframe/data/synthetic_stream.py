"""Generated sequences as a stream of training sequences, and as held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mcframe.context.counter_rng import hash_combine
from mcframe.data.plugin_checks import generated
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch, SyntheticTask

_TRAIN, _HELD_OUT = 1, 2
"""Salts: no training sequence has the seed of a held-out one."""


class GeneratedWindows:
    """Sequence i is a function of the run's seed and i. A `WindowStream` without end that needs no state."""

    def __init__(self, task: SyntheticTask, window: int, seed: int) -> None:
        self.window = window
        self._task, self._seed = task, seed

    def take(self, indices: Sequence[int]) -> SyntheticBatch:
        """Sequences with these global indices."""
        return generated(self._task, _seeds(self._seed, indices, _TRAIN), self.window)

    def state(self) -> dict[str, Any]:
        """What `restore` compares."""
        return {"seed": self._seed, "task": self._task.identity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises UserError where `state` belongs to other sequences."""
        if dict(state) != self.state():
            raise UserError(
                f"the checkpoint was trained on other sequences: it has {dict(state)}, this run has {self.state()}",
                remedy="restore the task and the seed of the checkpoint, or start a new run",
            )

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One state out of those of all ranks, which are equal."""
        return dict(states[0])


def held_out(task: SyntheticTask, count: int) -> SyntheticBatch:
    """`count` sequences that no training run sees, the same in every run."""
    return generated(task, _seeds(0, range(count), _HELD_OUT))


def _seeds(seed: int, indices: Sequence[int], salt: int) -> torch.Tensor:
    return hash_combine(hash_combine(torch.tensor(list(indices), dtype=torch.int64), seed), salt)
