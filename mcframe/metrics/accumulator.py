"""StepMetrics of many micro-batches, kept on the device until an interval is logged.

`Accumulator.add` never waits for the device. `Accumulator.read` reduces over ranks, copies everything to the host at
once, and turns sums into the metrics of docs/concepts.md.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.metrics.catalogue import DEFAULT_SUFFIXES, SAMPLE_SUFFIXES
from mcframe.metrics.tally import Reading, Tally

if TYPE_CHECKING:
    from mcframe.context.step_metrics import StepMetrics

Array = npt.NDArray[np.float64]

_Pool = dict[tuple[str, ...], Tensor]
"""Sums by the names that arrive together, [names, values]: one addition a micro-batch instead of one a name."""

_SUMMED = ("means", "sums", "moments")
"""The kinds of `StepMetrics` of which a sum is all that is kept."""

_CONSTANT = 1e-12
"""A variance below this share of the mean square is rounding: the values are constant."""

_REDUCTIONS: dict[str, Callable[[Array], np.float64]] = {
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "max": np.max,
    "p95": lambda values: np.percentile(values, 95),
}


class Accumulator:
    """Pools `StepMetrics` over micro-batches; one per rank. Sums are float64, so that long intervals stay exact.

    device  where the statistics live, and where the collectives of `read` run
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new interval begins."""
        self._pools: dict[str, _Pool] = {kind: {} for kind in _SUMMED}
        self._samples: dict[str, list[Tensor]] = {}

    def add(self, statistics: StepMetrics) -> None:
        """Take in one micro-batch. Copies, so that the caller may overwrite its tensors; no host synchronisation."""
        for kind in _SUMMED:
            _pool(self._pools[kind], getattr(statistics, kind))
        for name, values in statistics.samples.items():
            self._samples.setdefault(name, []).append(values.detach().to(torch.float64, copy=True))

    def read(self, group: dist.ProcessGroup | None = None) -> dict[str, float]:
        """The interval's metrics, equal on every rank of `group` (default: all); then a new interval begins.

        A mean without entries and an undefined correlation are left out; NaN samples are skipped and counted
        as `NAME_undefined`. Standard deviations divide by n. Collective: every rank must call it. Waits for the device
        once; with several ranks once more before it, to compare what they hold.
        Raises RuntimeError where ranks hold different statistics.
        """
        flat, understand = self.collect(group)
        return understand(flat.cpu().numpy())

    def collect(self, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Callable[[Array], dict[str, float]]]:
        """`read` in two parts, for `read_back`: a flat tensor, and what makes sense of it on the host."""
        world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
        if world > 1:
            self._assert_agreement(group)
        flat, pools, sizes = self._everything(world, group), self._pools, self._sizes()
        self.reset()

        def understand(host: Array) -> dict[str, float]:
            left = _Host(host)
            means, sums, moments = (left.totals(pools[kind]) for kind in _SUMMED)
            metrics = {name: float(total / count) for name, (total, count) in means.items() if count > 0}
            metrics |= {name: float(total) for name, total in sums.items()}
            for name, values in left.samples(sizes, world).items():
                metrics.update(_distribution(name, values))
            correlations = {name: _pearson(*map(float, row)) for name, row in moments.items()}
            return metrics | {name: value for name, value in correlations.items() if value is not None}

        return flat, understand

    def state(self) -> dict[str, Any]:
        """This rank's unread interval, on the host, as plain containers and tensors. Synchronises."""
        pools = {
            kind: [(list(names), block.cpu().clone()) for names, block in pool.items()]
            for kind, pool in self._pools.items()
        }
        return pools | {"samples": {name: torch.cat(parts).cpu() for name, parts in self._samples.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned: the interval reads back as if it had never been interrupted."""
        self._pools = {
            kind: {tuple(names): block.to(self.device, copy=True) for names, block in state[kind]} for kind in _SUMMED
        }
        self._samples = {name: [values.to(self.device, copy=True)] for name, values in state["samples"].items()}

    def _assert_agreement(self, group: dist.ProcessGroup | None) -> None:
        # Collectives on tensors of different shapes abort with a message that helps nobody: compare first.
        held = [*(tuple(pool) for pool in self._pools.values()), self._sizes()]
        signature = zlib.crc32(repr(held).encode())
        extremes = torch.tensor([signature, -signature], device=self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
        highest, lowest = extremes.tolist()
        if highest != -lowest:
            raise RuntimeError(f"ranks disagree about the statistics of this interval; this one holds {held}")

    def _sizes(self) -> dict[str, int]:
        return {name: sum(part.numel() for part in parts) for name, parts in self._samples.items()}

    def _everything(self, world: int, group: dist.ProcessGroup | None) -> Tensor:
        """All that `_Host` takes apart, on the device: sums over ranks in the order of the pools, then samples."""
        blocks = [block for pool in self._pools.values() for block in pool.values()]
        empty = torch.empty(0, dtype=torch.float64, device=self.device)
        sums = torch.cat([empty, *(block.flatten() for block in blocks)])
        samples = torch.cat([empty, *(part for parts in self._samples.values() for part in parts)])
        if world == 1:
            return torch.cat((sums, samples))
        if sums.numel():
            dist.all_reduce(sums, group=group)
        ranks = [torch.empty_like(samples) for _ in range(world)]
        if samples.numel():
            dist.all_gather(ranks, samples, group=group)
        return torch.cat((sums, *ranks))


class _Host:
    """What was read back, taken apart from the front."""

    def __init__(self, everything: Array) -> None:
        self._left = everything

    def totals(self, pool: _Pool) -> dict[str, Array]:
        """Sums by name of a pool that was read back."""
        totals: dict[str, Array] = {}
        for names, block in pool.items():
            for name, row in zip(names, self._take(block.numel()).reshape(block.shape), strict=True):
                totals[name] = totals[name] + row if name in totals else row
        return totals

    def samples(self, sizes: dict[str, int], world: int) -> dict[str, Array]:
        """Every rank's samples of the interval by name."""
        ranks = [{name: self._take(size) for name, size in sizes.items()} for _ in range(world)]
        return {name: np.concatenate([rank[name] for rank in ranks]) for name in sizes}

    def _take(self, count: int) -> Array:
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _pool(pool: _Pool, values: dict[str, Tensor]) -> None:
    if not values:
        return
    names = tuple(values)
    block = torch.stack([value.detach() for value in values.values()]).to(torch.float64)
    pool[names] = pool[names] + block if names in pool else block


def _distribution(name: str, values: Array) -> dict[str, float]:
    defined = values[~np.isnan(values)]
    metrics: dict[str, float] = {}
    if defined.size:
        for suffix in SAMPLE_SUFFIXES.get(name, DEFAULT_SUFFIXES):
            metrics[f"{name}_{suffix}"] = float(_REDUCTIONS[suffix](defined))
    if defined.size < values.size:
        metrics[f"{name}_undefined"] = float(values.size - defined.size)
    return metrics


def _pearson(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """Pearson's r of n pairs from their sums; None where either side is constant or there are fewer than two."""
    if n < 2:
        return None
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    if spread_x <= _CONSTANT * n * xx or spread_y <= _CONSTANT * n * yy:
        return None
    return max(-1.0, min(1.0, (n * xy - x * y) / math.sqrt(spread_x) / math.sqrt(spread_y)))


def read_back(accumulator: Accumulator, tally: Tally) -> tuple[dict[str, float], Reading]:
    """What both would read, in one copy to the host: the one place where a logging interval waits for the device."""
    metrics, metrics_of = accumulator.collect()
    counted, reading_of = tally.collect()
    host = torch.cat((metrics, counted)).cpu().numpy()
    return metrics_of(host[: metrics.numel()]), reading_of(host[metrics.numel() :])
