"""95 % intervals by the bootstrap: documents are resampled with replacement, and values stay paired by target.

Efron's percentile interval over documents (a cluster bootstrap): targets of one document are correlated, and taking
them as independent would make every interval too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcframe.hookspecs import Interval

Array = NDArray[np.float64]
Means = Mapping[str, Array]

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 4_000_000
"""Number of drawn documents in memory at a time."""


class Bootstrap:
    """Means of several values of the same targets, and their distribution over resampled documents.

    Args:
        values: Name -> [targets], all finite.
        documents: [targets] the document of each target.
        seed: Seed of the draws.
        resamples: Number of resamples.
    """

    def __init__(
        self, values: Mapping[str, Tensor], documents: Tensor, *, seed: int = 0, resamples: int = RESAMPLES
    ) -> None:
        _, owner = torch.unique(documents, return_inverse=True)
        self.targets = int(owner.numel())
        self.documents = int(owner.max()) + 1 if self.targets else 0
        table = torch.stack([*(v.double() for v in values.values()), torch.ones(self.targets, dtype=torch.float64)])
        if not bool(table.isfinite().all()):
            raise ValueError("expected finite values: conditions must be compared on the same targets")
        sums = torch.zeros(self.documents, len(values) + 1, dtype=torch.float64).index_add(0, owner, table.T).numpy()
        self._names = list(values)
        self.point = self._means(sums.sum(axis=0, keepdims=True)) if self.targets else {}
        resampled = _resample(sums, seed, resamples) if self.documents > 1 else np.empty((0, len(values) + 1))
        self._resampled = self._means(resampled)

    def _means(self, sums: Array) -> Means:
        return {name: sums[:, column] / sums[:, -1] for column, name in enumerate(self._names)}

    def mean(self, name: str) -> Interval:
        """Return the mean of one value over targets."""
        return self.interval(lambda means: means[name])

    def difference(self, name: str, other: str) -> Interval:
        """Return the mean of one value minus that of another, paired by target."""
        return self.interval(lambda means: means[name] - means[other])

    def interval(self, statistic: Callable[[Means], Array]) -> Interval:
        """Return a function of means, such as a ratio of two, with its percentile interval.

        The value is NaN without targets. The bounds are NaN if all targets are of one document.
        """
        if not self.targets:
            return Interval(np.nan, np.nan, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            value, resampled = float(statistic(self.point)[0]), statistic(self._resampled)
        if not resampled.size:
            return Interval(value, np.nan, np.nan)
        low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(value, float(low), float(high))


def _resample(sums: Array, seed: int, resamples: int) -> Array:
    """Return [resamples, columns], sums of [documents, columns] over as many documents drawn with replacement."""
    count = sums.shape[0]
    generator = np.random.Generator(np.random.Philox(key=seed))
    step = max(1, _AT_ONCE // count)
    parts = []
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        parts.append(weights @ sums)
    return np.concatenate(parts)
