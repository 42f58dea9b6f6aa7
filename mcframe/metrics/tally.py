"""What is counted for pictures, kept on the device until an interval is logged. Its size does not grow with time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.context.step_histograms import ABSENT, foremost

if TYPE_CHECKING:
    from mcframe.context.step_metrics import StepMetrics


@dataclass(frozen=True)
class Reading:
    """A logging interval's counts and points, of all ranks; without names where nothing was counted.

    counts  name -> int64, of the shape that `StepMetrics.counts` has
    points  name -> [n, columns] float64, without their priorities, the foremost first
    """

    counts: dict[str, npt.NDArray[np.int64]]
    points: dict[str, npt.NDArray[np.float64]]


class Tally:
    """Pools the counts and points of `StepMetrics` over micro-batches; one per rank.

    device  where the statistics live, and where the collectives of `read` run
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new interval begins."""
        self._counts: dict[str, Tensor] = {}
        self._points: dict[str, Tensor] = {}

    def add(self, statistics: StepMetrics) -> None:
        """Take in one micro-batch. No host synchronisation."""
        for name, counts in statistics.counts.items():
            known = self._counts.get(name)
            # A resumed run may have other blocks than the checkpoint's unread interval, which is then forgotten.
            if known is not None and known.shape == counts.shape:
                self._counts[name] = known + counts
            else:
                self._counts[name] = counts.clone()
        for name, points in statistics.points.items():
            former = [self._points[name]] if name in self._points else []
            self._points[name] = foremost(torch.cat([*former, points]))

    def read(self, group: dist.ProcessGroup | None = None) -> Reading:
        """The interval's reading, equal on every rank of `group` (default: all); then a new interval begins.

        Collective: every rank must call it, with statistics of the same names and shapes. One host copy.
        """
        flat, understand = self.collect(group)
        return understand(flat.cpu().numpy())

    def collect(
        self, group: dist.ProcessGroup | None = None
    ) -> tuple[Tensor, Callable[[npt.NDArray[np.float64]], Reading]]:
        """`read` in two parts, for `read_back`: a flat tensor, and what makes sense of it on the host."""
        world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
        shapes = {name: counts.shape for name, counts in self._counts.items()}
        points = {name: self._over_ranks(points, world, group) for name, points in self._points.items()}
        parts = [self._summed(world, group), *points.values()]
        flat = torch.cat([part.flatten() for part in parts])  # float64 holds counts to 2**53
        self.reset()

        def understand(host: npt.NDArray[np.float64]) -> Reading:
            counts, found = {}, {}
            for name, shape in shapes.items():
                counts[name], host = host[: shape.numel()].reshape(shape).astype(np.int64), host[shape.numel() :]
            for name, best in points.items():
                rows, host = host[: best.numel()].reshape(best.shape), host[best.numel() :]
                found[name] = rows[rows[:, 0] > ABSENT, 1:]
            return Reading(counts, found)

        return flat, understand

    def state(self) -> dict[str, Any]:
        """This rank's unread interval, on the host. Synchronises."""
        pools = {"counts": self._counts, "points": self._points}
        return {kind: {name: value.cpu().clone() for name, value in pool.items()} for kind, pool in pools.items()}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` returned; None, from older checkpoints: with nothing."""
        if state is None:
            self.reset()
            return
        self._counts = {name: value.to(self.device, copy=True) for name, value in state["counts"].items()}
        self._points = {name: value.to(self.device, copy=True) for name, value in state["points"].items()}

    def _summed(self, world: int, group: dist.ProcessGroup | None) -> Tensor:
        """All counts over ranks, in one reduction, as float64."""
        empty = torch.empty(0, dtype=torch.long, device=self.device)
        flat = torch.cat([empty, *(counts.flatten() for counts in self._counts.values())])
        if world > 1 and flat.numel():
            dist.all_reduce(flat, group=group)
        return flat.double()

    def _over_ranks(self, points: Tensor, world: int, group: dist.ProcessGroup | None) -> Tensor:
        """The foremost points of all ranks, the foremost first."""
        if world > 1:
            ranks = [torch.empty_like(points) for _ in range(world)]
            dist.all_gather(ranks, points.contiguous(), group=group)
            points = torch.cat(ranks)
        return foremost(points)
