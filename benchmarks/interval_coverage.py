"""Percentage of 95 % intervals that hold the true value: `python benchmarks/interval_coverage.py [REPEATS]`.

Simulated documents differ in size and in their mean, from distributions with light, heavy and long tails. A cell of the
printed table: a mean, a difference and a recovery; in brackets the mean with percentiles of a bootstrap.
docs/evaluation.md has some of its rows. It takes about four minutes. A recovery without bounds is not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mcframe.evaluation.document_means import DocumentMeans

Array = NDArray[np.float64]
COUNTS = (9, 31, 41)
WITHIN = 0.5
"""Standard deviation of targets within a document; between documents it is 1."""
RESAMPLES = 400

SIZES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "10 to 110": lambda rng, n: 10.0 * rng.integers(1, 12, n),
    "lognormal": lambda rng, n: np.ceil(20 * np.exp(rng.normal(0, 1, n))),
}
EFFECTS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "Student's t, 3 d.f.": lambda rng, n: rng.standard_t(3, n) / 3**0.5,
    "gamma, skewness 1": lambda rng, n: rng.gamma(4, size=n) / 2 - 2,
    "exponential, skewness 2": lambda rng, n: rng.exponential(size=n) - 1,
}


def simulate(
    rng: np.random.Generator, count: int, sizes: str, effect: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return costs of dropping and of gists, the document of each target; the true means are 2 and 1."""
    size = SIZES[sizes](rng, count).astype(int)
    owner = np.repeat(np.arange(count), size)
    drop, own = (EFFECTS[effect](rng, count)[owner] for _ in range(2))
    noise = rng.normal(size=(2, owner.size)) * WITHIN
    return {
        "drop": torch.from_numpy(2 + drop + noise[0]),
        "gist": torch.from_numpy(1 + 0.5 * drop + 0.5 * own + noise[1]),
    }, torch.from_numpy(owner)


def percentiles(rng: np.random.Generator, values: torch.Tensor, documents: torch.Tensor) -> tuple[float, float]:
    """Return percentiles of a bootstrap over documents, for comparison."""
    size = np.bincount(documents.numpy())
    total = np.bincount(documents.numpy(), weights=values.numpy())
    drawn = rng.integers(0, len(size), (RESAMPLES, len(size)))
    low, high = np.quantile(total[drawn].sum(axis=1) / size[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def coverage(count: int, sizes: str, effect: str, repeats: int) -> list[float]:
    """Return the fractions of intervals that hold the value: percentiles, mean, difference and recovery."""
    rng = np.random.default_rng(0)
    held, bounded = np.zeros(4), 0
    for _ in range(repeats):
        values, documents = simulate(rng, count, sizes, effect)
        low, high = percentiles(rng, values["drop"], documents)
        means = DocumentMeans(values, documents)
        held[0] += low <= 2 <= high
        mean, difference = means.mean("drop"), means.difference("gist", "drop")
        held[1] += mean.low <= 2 <= mean.high
        held[2] += difference.low <= -1 <= difference.high
        recovery = means.ratio({"drop": 1, "gist": -1}, {"drop": 1})
        held[3] += recovery.low <= 0.5 <= recovery.high
        bounded += recovery.low == recovery.low  # few documents may have a difference that nothing can be divided by
    return list(held / [repeats, repeats, repeats, bounded])


def main(repeats: int) -> None:
    """Print the table."""
    print("| targets of a document | means of documents |", " | ".join(f"{count} documents" for count in COUNTS), "|")
    print("| --- | --- |", " | ".join("---" for _ in COUNTS), "|")
    for sizes in SIZES:
        for effect in EFFECTS:
            cells = []
            for count in COUNTS:
                bootstrap, *found = (f"{100 * each:.1f}" for each in coverage(count, sizes, effect, repeats))
                cells.append(f"{', '.join(found)} ({bootstrap})")
            print(f"| {sizes} | {effect} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
