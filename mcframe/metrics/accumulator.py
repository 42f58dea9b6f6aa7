"""Accumulator of `StepMetrics` between two log lines: on the device, reduced over ranks, copied to the host once."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.context.step_histograms import MAX_POINTS, NO_POINT, top_points
from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.catalogue import sample_reductions

Array = npt.NDArray[np.float64]
_Key = tuple[str, ...]
"""A field of `StepMetrics`, and the names whose values are stacked in one tensor."""

_SUMMED = ("means", "roots", "sums", "moments", "counts")

_CONSTANT = 1e-12
"""A variance below this fraction of the mean square is rounding: the values are constant."""

_REDUCTIONS: dict[str, Callable[[Array], np.float64]] = {
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "max": np.max,
    "p95": lambda values: np.percentile(values, 95),
}


@dataclass(frozen=True)
class Reading:
    """Metrics of a logging interval, equal on all ranks.

    Attributes:
        metrics: name -> value, as logged.
        counts: name -> int64, of the shape in `StepMetrics.counts`.
        points: name -> [n, columns] float64 without the priorities, highest priority first.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    points: dict[str, Array] = field(default_factory=dict)


class Accumulator:
    """Reduces `StepMetrics` over micro-batches, and over ranks when it is read. One per rank.

    Sums are float64, so that long intervals stay exact.

    Args:
        device: device of the metrics and of the collectives in `read`.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._held: dict[_Key, Tensor] = {}
        self._earlier: dict[_Key, Array] = {}  # of all ranks, before a change of their number

    def add(self, metrics: StepMetrics) -> None:
        """Add one micro-batch. Copies the tensors; does not synchronise with the host."""
        for kind in ("means", "roots", "sums", "moments"):
            if values := getattr(metrics, kind):
                # One stack and one addition for all names of a field keeps the number of kernels small.
                block = torch.stack([value.detach() for value in values.values()]).to(torch.float64)
                self._merge((kind, *values), block, torch.add)
        for name, counts in metrics.counts.items():
            self._merge(("counts", name), counts[None].clone(), torch.add)
        for name, samples in metrics.samples.items():
            self._merge(("samples", name), samples.detach().to(torch.float64, copy=True), _concatenate)
        for name, points in metrics.points.items():
            self._merge(("points", name), top_points(points), lambda a, b: top_points(_concatenate(a, b)))

    def _merge(self, key: _Key, value: Tensor, merge: Callable[[Tensor, Tensor], Tensor]) -> None:
        held = self._held.get(key)
        # A run that is resumed with other blocks discards the counts in the checkpoint.
        if held is not None and key[0] == "counts" and held.shape != value.shape:
            held = None
        self._held[key] = value if held is None else merge(held, value)

    def read(self, group: dist.ProcessGroup | None = None) -> Reading:
        """Return the interval's metrics, and start the next interval.

        Means without entries and undefined correlations are omitted. NaN samples are skipped and counted as
        `NAME_undefined`. Standard deviations divide by n. A collective: every rank must call it. Waits for the device
        once; with several ranks once more to compare their names.

        Args:
            group: ranks to reduce over; None for all.

        Raises:
            RuntimeError: the ranks hold different metrics.
        """
        world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
        if world > 1:
            self._check_agreement(group)
        held, self._held = self._held, {}
        earlier, self._earlier = self._earlier, {}
        summed = {key: value for key, value in held.items() if key[0] in _SUMMED}
        gathered = {key: value for key, value in held.items() if key not in summed}
        sums, own = self._flat(summed), self._flat(gathered)
        ranks = [own]
        if world > 1:
            ranks = [torch.empty_like(own) for _ in range(world)]
            if sums.numel():
                dist.all_reduce(sums, group=group)
            if own.numel():
                dist.all_gather(ranks, own, group=group)
        host = torch.cat((sums, *ranks)).cpu().numpy()
        totals, host = _split(host, summed)
        parts = []
        for _ in ranks:
            part, host = _split(host, gathered)
            parts.append(part)
        lists = {key: np.concatenate([part[key] for part in parts]) for key in gathered}
        for key, value in earlier.items():
            found = totals if key[0] in _SUMMED else lists
            found[key] = _joined(key, value, found[key]) if key in found else value
        return _reading(totals, lists)

    def state(self) -> dict[str, Any]:
        """Return this rank's unread interval on the host, for a checkpoint. Synchronises."""
        held = [(list(key), value.cpu().clone()) for key, value in self._held.items()]
        return {"held": held, "earlier": [(list(key), value) for key, value in self._earlier.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace the unread interval by one that `state` or `merge` returned."""
        self._held = {tuple(key): value.to(self.device, copy=True) for key, value in state["held"]}
        self._earlier = {tuple(key): value for key, value in state["earlier"]}

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one state for every rank of another number of ranks, made from those of all ranks before."""
        merged = {tuple(key): value for key, value in states[0]["earlier"]}  # equal on all ranks
        for key, value in ((tuple(key), value.double().numpy()) for state in states for key, value in state["held"]):
            merged[key] = _joined(key, merged[key], value) if key in merged else value
        return {"held": [], "earlier": [(list(key), value) for key, value in merged.items()]}

    def _check_agreement(self, group: dist.ProcessGroup | None) -> None:
        # Collectives on tensors of different shapes abort without naming the metric, so compare names and shapes.
        held = [(key, tuple(value.shape)) for key, value in self._held.items()]
        signature = zlib.crc32(repr(held).encode())
        extremes = torch.tensor([signature, -signature], device=self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
        highest, lowest = extremes.tolist()
        if highest != -lowest:
            raise RuntimeError(f"Accumulator.read: ranks disagree about the metrics of this interval; got {held}")

    def _flat(self, values: Mapping[_Key, Tensor]) -> Tensor:
        """Return the values as one float64 tensor [n], which holds counts exactly up to 2**53."""
        empty = torch.empty(0, dtype=torch.float64, device=self.device)
        return torch.cat([empty, *(value.flatten() for value in values.values())])


def _concatenate(held: Tensor, new: Tensor) -> Tensor:
    return torch.cat((held, new))


def _joined(key: _Key, before: Array, after: Array) -> Array:
    """Return the values of two parts of an interval together; counts of another shape replace those before."""
    if key[0] in _SUMMED:
        return before + after if before.shape == after.shape else after
    return np.concatenate((before, after))


def _split(flat: Array, like: Mapping[_Key, Tensor]) -> tuple[dict[_Key, Array], Array]:
    """Return arrays of the shapes of `like` from the start of `flat`, and the rest of it."""
    arrays = {}
    for key, tensor in like.items():
        arrays[key], flat = flat[: tensor.numel()].reshape(tensor.shape), flat[tensor.numel() :]
    return arrays, flat


def _reading(totals: Mapping[_Key, Array], gathered: Mapping[_Key, Array]) -> Reading:
    rows: dict[tuple[str, str], Array] = {}
    for (kind, *names), block in totals.items():
        for name, row in zip(names, block, strict=True):
            # Micro-batches with different sets of names have separate keys.
            rows[kind, name] = rows[kind, name] + row if (kind, name) in rows else row
    reading = Reading()
    for (kind, name), row in rows.items():
        if kind == "counts":
            reading.counts[name] = row.astype(np.int64)
        elif (value := _metric(kind, row)) is not None:
            reading.metrics[name] = value
    for (kind, name), values in gathered.items():
        if kind == "samples":
            reading.metrics.update(_distribution(name, values))
        else:
            top = values[np.argsort(-values[:, 0], kind="stable")[:MAX_POINTS]]
            reading.points[name] = top[top[:, 0] > NO_POINT, 1:]
    return reading


def _metric(kind: str, row: Array) -> float | None:
    """Return a metric from its totals, None if it is undefined."""
    if kind == "sums":
        return float(row)
    if kind == "moments":
        return _pearson(*map(float, row))
    if row[1] <= 0:
        return None
    mean = float(row[0] / row[1])
    return math.sqrt(mean) if kind == "roots" else mean


def _distribution(name: str, values: Array) -> dict[str, float]:
    defined = values[~np.isnan(values)]
    metrics = {}
    if defined.size:
        metrics = {f"{name}_{each}": float(_REDUCTIONS[each](defined)) for each in sample_reductions(name)}
    if defined.size < values.size:
        metrics[f"{name}_undefined"] = float(values.size - defined.size)
    return metrics


def _pearson(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """Return Pearson's r of n pairs from their sums; None for constant values and for fewer than two pairs."""
    if n < 2:
        return None
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    if spread_x <= _CONSTANT * n * xx or spread_y <= _CONSTANT * n * yy:
        return None
    return max(-1.0, min(1.0, (n * xy - x * y) / math.sqrt(spread_x) / math.sqrt(spread_y)))
