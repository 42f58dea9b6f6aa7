"""Validation: the NLL of held-out windows, uncompressed, in nats and in bits per byte."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from rich.text import Text
from torch import Tensor

from mcframe.collective import fail_together
from mcframe.config.training_schema import ValidationConfig
from mcframe.context.step_histograms import blocks_by_lod
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.context_text import colored, key, strip
from mcframe.modeling.model import MegaContextModel
from mcframe.training.build import Components
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.eval_mode import eval_mode
from mcframe.training.sampling import focuses

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer

CONTEXTS = "the pictures of working contexts"
SHOWN, FOCUSED = 3, 16
"""Held-out windows whose working contexts are printed, and those that LensNet focuses for the heat map."""


class Validate(TrainerCallback):
    """Measure the loss on held-out windows, divided among the ranks, and show the contexts that LensNet selects.

    Args:
        config: `validation` of the configuration.
        components: The components of the run.
        windows: Held-out windows [n, T + 1].
        loss_mask: The targets that count [n, T], bool; None for all.
        micro_batch: Windows of a forward pass.
        device: Device of the model.
    """

    watches = "the validation"

    def __init__(
        self,
        config: ValidationConfig,
        components: Components,
        windows: Tensor,
        loss_mask: Tensor | None,
        micro_batch: int,
        device: torch.device,
    ) -> None:
        super().__init__(config.every, at_start=True)
        rank, world = dist.get_rank(), dist.get_world_size()
        per_rank = -(-windows.shape[0] // world)
        # Every rank runs the same number of forwards (ZeRO 3 gathers weights in each); the surplus has no weight.
        mine = torch.arange(rank, per_rank * world, world)
        self._weight = (mine < windows.shape[0]).float().to(device)
        mine = mine.clamp(max=windows.shape[0] - 1)
        self._windows = windows[mine].to(device)
        counts = torch.ones_like(windows[:, 1:], dtype=torch.bool) if loss_mask is None else loss_mask
        self._counts = counts[mine].to(device)
        lengths = components.tokenizer.byte_lengths()
        surplus = components.model.gpt.vocab_size - lengths.shape[0]  # of a vocabulary larger than the tokenizer's
        self._bytes = torch.nn.functional.pad(lengths, (0, surplus)).to(device)
        self._micro_batch = micro_batch

    def run(self, trainer: Trainer) -> None:
        """Validate, and publish the metrics."""
        started = time.monotonic()
        with eval_mode(trainer.engine.wrapped):
            metrics = self._losses(trainer)
            metrics["train/validation_ms"] = 1000 * (time.monotonic() - started)
            if trainer.components.model.lensnet is not None:
                trainer.watchers.call(CONTEXTS, lambda: metrics.update(self._show_contexts(trainer)))
        trainer.recorder.publish(metrics)

    @torch.no_grad()
    def _losses(self, trainer: Trainer) -> dict[str, float]:
        """Return `val/loss` in nats per token and, if targets stand for text, `val/bpb`. Collective."""
        totals = fail_together(lambda: self._totals(trainer.engine.model, trainer.device), trainer.device)
        dist.all_reduce(totals)
        nats, tokens, size = totals.tolist()
        bits = {"val/bpb": nats / math.log(2) / size} if size else {}  # ids of a task may not be a tokenizer's
        return {"val/loss": nats / tokens, **bits}

    def _totals(self, model: MegaContextModel, device: torch.device) -> Tensor:
        """Return nats, targets and bytes [3] of the windows of this rank."""
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        parts = (torch.split(part, self._micro_batch) for part in (self._windows, self._counts, self._weight))
        for windows, counts, weight in zip(*parts, strict=True):
            nll = model.nll(windows).double() * counts
            lengths = self._bytes[windows[:, 1:]].double() * counts
            per_window = torch.stack((nll.sum(1), counts.sum(1).double(), lengths.sum(1)))
            totals += (per_window * weight).sum(dim=1)
        return totals

    def _show_contexts(self, trainer: Trainer) -> dict[str, float]:
        """Print working contexts that LensNet and the allocator select on held-out text, and a proposed variant.

        Runs on every rank: at ZeRO 3 weights are gathered from all of them.
        """
        components, config, state = trainer.components, trainer.run_config, trainer.state
        budget = config.context.target(min(1.0, state.step / max(1, state.total_steps - 1)))
        chosen, random, rounds = fail_together(
            lambda: focuses(
                trainer.engine.model, components.allocator, trainer.held_out[:FOCUSED], budget, config.seed,
                self._micro_batch, trainer.device,
            ),
            trainer.device,
        )  # fmt: skip
        tree, recorder = components.tree, trainer.recorder
        lines = [("focused ", row) for row in chosen[:SHOWN].tolist()] + [("random  ", random[0].tolist())]
        recorder.progress.message(key(tree))
        for name, row in lines:
            recorder.progress.message(Text(name).append_text(colored(row, tree)))
        plain = [key(tree).plain, *(name + strip(row, tree) for name, row in lines)]
        recorder.text("working_contexts", "\n".join(plain))
        recorder.record(Reading(counts={"mc/blocks/lens": blocks_by_lod(chosen, tree.levels).numpy()}))
        return {"mc/focus_iterations": rounds}
