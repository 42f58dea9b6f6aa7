"""Stop a run whose validation no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mcframe.bounds import Count, NonNegative
from mcframe.hookspecs import Callback


class EarlyStopping(Callback):
    """Request a stop after `patience` validations without an improvement of a metric.

    Args:
        metric: A logged metric; lower is better.
        patience: Readings without an improvement until the run stops.
        min_delta: The least decrease that counts as an improvement.
        name: Names its state in checkpoints.
    """

    def __init__(
        self,
        *,
        metric: str = "val/loss",
        patience: Count = 3,
        min_delta: NonNegative = 0.0,
        name: str = "early_stopping",
    ) -> None:
        self.name, self._metric, self._patience, self._min_delta = name, metric, patience, min_delta
        self._best, self._misses = math.inf, 0

    def on_metrics(self, tokens: int, metrics: Mapping[str, float]) -> None:
        """Compare the metric with the best reading so far. A NaN is no improvement."""
        if self._metric not in metrics:
            return
        value = metrics[self._metric]
        if value < self._best - self._min_delta:
            self._best, self._misses = value, 0
            return
        self._misses += 1
        if self._misses >= self._patience:
            self.request_stop(f"{self._metric} has not fallen below {self._best:.4g} in {self._misses} readings")

    def state_dict(self) -> dict[str, Any]:
        """Return the best reading and the number of readings since."""
        return {"best": self._best, "misses": self._misses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._best, self._misses = state["best"], state["misses"]
