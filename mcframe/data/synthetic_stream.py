"""Generated sequences as a stream of training sequences, and as held-out sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mcframe.context.counter_rng import hash_combine
from mcframe.data.plugin_checks import generated
from mcframe.data.window_stream import StatelessWindows
from mcframe.hookspecs import SyntheticBatch, SyntheticTask

_TRAIN, _HELD_OUT = 1, 2
"""Salts: no training sequence has the seed of a held-out one."""


class GeneratedWindows(StatelessWindows):
    """An endless `WindowStream` whose sequence i is a function of the run's seed and i."""

    def __init__(self, task: SyntheticTask, window: int, seed: int) -> None:
        self.window = window
        self._task, self._seed = task, seed

    def take(self, indices: Sequence[int]) -> SyntheticBatch:
        """Return the sequences with these global indices."""
        return generated(self._task, _seeds(self._seed, indices, _TRAIN), self.window)

    def state(self) -> dict[str, Any]:
        """Return what determines the sequences."""
        return {"seed": self._seed, "task": self._task.identity}


def held_out(task: SyntheticTask, count: int) -> SyntheticBatch:
    """Return `count` sequences that no training run contains, the same in every run."""
    return generated(task, _seeds(0, range(count), _HELD_OUT))


def _seeds(seed: int, indices: Sequence[int], salt: int) -> torch.Tensor:
    return hash_combine(hash_combine(torch.tensor(list(indices), dtype=torch.int64), seed), salt)
