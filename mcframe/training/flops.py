"""FLOPs of a training step, counted by torch while a copy of the step runs on the meta device, where no data exists."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcframe.interfaces import base_model
from mcframe.metrics.mfu import gpt_flops_per_token
from mcframe.training.train_step import StepBatch, TrainStep

Network = TypeVar("Network", bound=nn.Module)
_META = torch.device("meta")
_SCORED_AT_MOST = 16
"""Passes over each entry that a loss is assumed to score at most. With more logits a step is counted twice."""


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of a dataset token, forward and backward.

    Attributes:
        plain: Of the plain model with all weights trained (PaLM, arXiv 2204.02311, appendix B).
        total: Of everything that a step runs, once. MFU counts these.
        recomputed: Of what the backward pass runs a second time, in addition.
    """

    plain: float
    total: float
    recomputed: float


class StepFlops:
    """FLOPs of any step of a run. Build it before an engine takes the step: ZeRO 3 partitions the weights.

    Attributes:
        notes: What could not be counted, and the estimate that replaces it.
    """

    def __init__(self, step: TrainStep) -> None:
        self._step = meta_copy(step)
        self._known: dict[tuple[int, ...], FlopCount] = {}
        self.notes: dict[str, str] = {}

    def at(self, length: int, progress: float = 0.0, micro_batch: int | None = None) -> FlopCount:
        """Return the FLOPs of a step.

        Args:
            length: Entries of each variant; 0 without variants.
            progress: Fraction of training that is done, for losses with a curriculum.
            micro_batch: Sequences of a forward pass. With more, logits are computed in chunks and recomputed. None for
                as few as have the cost of the average.
        """
        micro_batch = micro_batch or self._step.baseline_every * self._step.variants_every
        self._step.begin_step(progress)
        key = (length, micro_batch, *(loss.stage for loss in self._step.losses.each()))
        if key not in self._known:
            self._known[key] = self._count(length, micro_batch)
        return self._known[key]

    def _count(self, length: int, micro_batch: int) -> FlopCount:
        gpt, window = self._step.model.gpt, self._step.model.tree.window
        plain = gpt_flops_per_token(gpt.non_embedding_parameters, gpt.depth, gpt.attention_width, window)
        tokens = micro_batch * window
        try:
            with _without_recomputation(self._step):
                total = self._run(length, micro_batch) / tokens
            recomputes = self._may_recompute(tokens)
            recomputed = self._run(length, micro_batch) / tokens - total if recomputes else 0.0
        except Exception as error:  # noqa: BLE001 - a plug-in that cannot run without data can still be trained
            reason = next(iter(str(error).splitlines()), "")
            self.notes["step"] = (
                f"estimated from the lengths of its contexts: a plug-in does not run on the meta device "
                f"({type(error).__name__}: {reason})"
            )
            baseline = (self._step.baseline_window or window) / self._step.baseline_every
            variants = self._step.model.strategy.count / self._step.variants_every
            contexts = (baseline + variants * length) / window
            total, recomputed = plain * contexts, 0.0
        return FlopCount(plain, total, max(0.0, recomputed))

    def _may_recompute(self, tokens: int) -> bool:
        """Return whether a second count can differ: losses of plug-ins may score a few times the entries of a step."""
        gpt, variants = self._step.model.gpt, self._step.model.strategy.count
        logits = _SCORED_AT_MOST * tokens * max(1, variants) * gpt.vocab_size
        return gpt.activation_checkpointing or logits > base_model.LOGITS_AT_ONCE

    def _run(self, length: int, micro_batch: int) -> float:
        tree, count = self._step.model.tree, self._step.model.strategy.count
        tokens = torch.zeros(micro_batch, tree.window + 1, dtype=torch.long, device=_META)
        seeds = torch.zeros(micro_batch, count, dtype=torch.long, device=_META)
        # The counter knows matrix products, and no fused attention of a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = self._step(StepBatch(tokens, seeds, length))[0]
            if loss.requires_grad:
                loss.backward()
        self._step.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())


@contextmanager
def _without_recomputation(step: TrainStep) -> Iterator[None]:
    """Compute every logit and every activation once within this context."""
    gpt, chunk = step.model.gpt, base_model.LOGITS_AT_ONCE
    checkpointing = gpt.activation_checkpointing
    gpt.activation_checkpointing, base_model.LOGITS_AT_ONCE = False, 2**62
    try:
        yield
    finally:
        gpt.activation_checkpointing, base_model.LOGITS_AT_ONCE = checkpointing, chunk


def meta_copy(network: Network) -> Network:
    """Return a copy on the meta device, which uses no memory."""
    tensors = [*network.parameters(), *network.buffers()]
    empty = {
        id(each): nn.Parameter(each.to(_META), each.requires_grad) if isinstance(each, nn.Parameter) else each.to(_META)
        for each in tensors
    }
    return copy.deepcopy(network, empty)
