"""Plain validation: the NLL of held-out windows, uncompressed, in nats and in bits per byte."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.training.engine import Engine


class Validation:
    """Held-out windows [n, T + 1], shared among the ranks; `byte_lengths` [vocabulary] turns nats into bits a byte.

    scored [n, T] bool: the targets that count, None for all of them.
    """

    def __init__(
        self,
        windows: Tensor,
        byte_lengths: Tensor,
        micro_batch: int,
        device: torch.device,
        loss_mask: Tensor | None = None,
    ) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        share = -(-windows.shape[0] // world)
        # Every rank runs the same number of forwards (ZeRO 3 gathers weights in each); the surplus weighs nothing.
        mine = torch.arange(rank, share * world, world)
        self._weight = (mine < windows.shape[0]).float().to(device)
        mine = mine.clamp(max=windows.shape[0] - 1)
        self._windows = windows[mine].to(device)
        counts = torch.ones_like(windows[:, 1:], dtype=torch.bool) if loss_mask is None else loss_mask
        self._counts = counts[mine].to(device)
        self._bytes = byte_lengths.to(device)
        self._micro_batch = micro_batch

    def run(self, engine: Engine) -> dict[str, float]:
        """`val/loss` in nats a token and, where targets stand for text, `val/bpb`. Collective."""
        engine.wrapped.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=self._windows.device)
        with torch.no_grad():
            parts = (torch.split(part, self._micro_batch) for part in (self._windows, self._counts, self._weight))
            for windows, counts, weight in zip(*parts, strict=True):
                nll = engine.model.nll(windows).double() * counts
                lengths = self._bytes[windows[:, 1:]].double() * counts
                per_window = torch.stack((nll.sum(1), counts.sum(1).double(), lengths.sum(1)))
                totals += (per_window * weight).sum(dim=1)
        engine.wrapped.train()
        dist.all_reduce(totals)
        nats, tokens, size = totals.tolist()
        bits = {"val/bpb": nats / math.log(2) / size} if size else {}  # a task's ids may be no tokenizer's
        return {"val/loss": nats / tokens, **bits}
