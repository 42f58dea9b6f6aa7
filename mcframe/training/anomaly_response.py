"""React to losses and gradients that are not finite, and to spikes of the loss: stop, skip or roll back, on all ranks.

Every step leaves flags on the device. They are read before anything that depends on the weights: a log line, a
checkpoint, a validation, the end. A step is skipped on the device at once; the rest happens when the flags are read.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mcframe.config.training_schema import AnomalyConfig
from mcframe.context.step_histograms import NO_POINT
from mcframe.context.step_metrics import StepMetrics
from mcframe.errors import UserError
from mcframe.training import anomaly_record as record
from mcframe.training.checkpoint_folder import find
from mcframe.training.checkpoints import load
from mcframe.training.nonfinite import not_finite
from mcframe.training.recent_steps import LossWindow, RecentStep, RecentSteps
from mcframe.training.step_undo import StepUndo

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer

DECLARED_METRICS = {
    "train/skipped_steps": ("steps", "lower", "steps skipped so far, by anomaly.on_nonfinite or anomaly.on_spike"),
    "train/rollbacks": ("rollbacks", "lower", "returns to the newest checkpoint so far, by the same settings"),
}
_DONE = {"skip": "skipped", "roll_back": "rolled back", "stop": "stopped"}
_FILL = {"samples": torch.nan, "points": NO_POINT}
"""Values of a skipped step's metrics that count for nothing; 0 in all other fields."""


class AnomalyResponse:
    """The reaction of a run to anomalies.

    Args:
        trainer: The trainer.
        config: `anomaly` of the configuration.

    Attributes:
        recent: The steps since the flags were read.
        skipped: Steps skipped so far, as far as the flags have been read.
        rollbacks: Returns to a checkpoint so far.
    """

    def __init__(self, trainer: Trainer, config: AnomalyConfig) -> None:
        self._trainer, self._config = trainer, config
        self.recent, self.skipped, self.rollbacks = RecentSteps(), 0, 0
        self._events: list[int] = []  # steps that were skipped or rolled back, for the limit
        self._dropped: list[int] = []  # positions in the data of batches that are not trained on
        self._window = LossWindow(config.spike_window, trainer.device)
        self._undo = StepUndo(trainer.engine, trainer.device) if config.reacts("skip") else None
        # Otherwise ranks compare their flags when these are read.
        self._each_step = self._undo is not None or config.on_spike != "ignore"
        self._pending: list[StepMetrics] = []
        self.good = torch.ones((), dtype=torch.bool, device=trainer.device)

    def begin_step(self) -> None:
        """Start a step: omit batches that were rolled back, and keep what a skipped step needs."""
        loader = self._trainer.loader
        while loader.position in self._dropped:
            for _ in range(self._trainer.engine.accumulation):
                next(loader)
        self.recent.begin_step(self._trainer.state.step, loader.position)
        if self._undo is not None:
            self._undo.keep()

    def add(self, batch: Any, loss: torch.Tensor, metrics: StepMetrics) -> None:
        """Add a micro-batch. Its metrics count once it is known whether the step is skipped."""
        self.recent.add(batch, loss)
        self._pending.append(metrics)
        if self._undo is None:
            self._count_metrics()

    @torch.no_grad()
    def end_step(self) -> None:
        """Set the flags of a step, and undo it if it is skipped. Reads nothing back."""
        config, step = self._config, self.recent.last
        loss, norm = step.loss(), self._trainer.engine.checked_norm(self._trainer.device)
        if self._each_step and (world := dist.get_world_size()) > 1:
            dist.all_reduce(loss)
            loss /= world
        spike = torch.zeros_like(self.good)
        mean = deviation = torch.full_like(loss, torch.nan)
        if config.on_spike != "ignore":
            mean, deviation, spike = self._window.compare(loss, config.spike_deviations, config.spike_nats)
        nonfinite = ~loss.isfinite() | ~norm.isfinite() | (norm < 0)  # DeepSpeed writes -1 for infinity
        step.row = torch.stack((loss, norm, mean, deviation, nonfinite.double(), (spike & ~nonfinite).double()))
        self._window.put(step.step, loss, ~(nonfinite | spike))
        if self._undo is not None:
            skip = nonfinite if config.on_nonfinite == "skip" else torch.zeros_like(nonfinite)
            self.good = ~(skip | (spike & ~nonfinite)) if config.on_spike == "skip" else ~skip
            self._undo.undo_unless(self.good)
            self._count_metrics()

    def _count_metrics(self) -> None:
        for metrics in self._pending:
            self._trainer.accumulator.add(metrics if self._undo is None else masked(metrics, self.good))
        self._pending = []

    @property
    def urgent(self) -> bool:
        """Whether DeepSpeed has found a gradient that is not finite, and the run stops or rolls back for it."""
        return self._trainer.engine.overflowed and self._config.on_nonfinite != "skip"

    def resolve(self) -> bool:
        """Read the flags and react. Return whether the run is at an earlier checkpoint now. Collective.

        Raises:
            UserError: The run stops, by setting or because of `anomaly.limit`.
        """
        unread, first = self.recent.unread(), True
        for step, row in zip(unread, self._read(unread), strict=True):
            nonfinite, spike = row[4] > 0, row[5] > 0
            reaction = self._config.on_nonfinite if nonfinite else self._config.on_spike
            if not (nonfinite or spike):
                continue
            self._report(step, row, reaction, first)
            if reaction == "stop" or self._over_limit(step):
                raise self._error(step, row, reaction)
            if reaction == "roll_back":
                self._roll_back(step)
                return True
            self.skipped, first = self.skipped + 1, False
        self.recent.restart()
        if self._undo is not None:
            self._undo.forget()
        return False

    def _read(self, unread: list[RecentStep]) -> list[list[float]]:
        """Return the rows of steps, equal on all ranks. Waits for the device, once."""
        if not unread:
            return []
        rows = torch.stack([step.row for step in unread if step.row is not None])
        if not self._each_step and (world := dist.get_world_size()) > 1:
            dist.all_reduce(rows)
            rows /= world
        found: list[list[float]] = rows.tolist()
        return found

    def _over_limit(self, step: RecentStep) -> bool:
        """Count an anomaly, and return whether there were too many."""
        self._events = [each for each in self._events if each > step.step - self._config.limit_steps] + [step.step]
        return len(self._events) > self._config.limit

    def _report(self, step: RecentStep, row: list[float], reaction: str, first: bool) -> None:
        """Save the batch, and print one line."""
        trainer, config = self._trainer, self._config
        weights, origin = self._weights_before(step, first and reaction == "skip")
        facts = {
            "step": step.step + 1,
            "tokens": step.step * trainer.state.batch_tokens,
            "position": step.position,
            "reaction": reaction,
            "problem": record.describe(row, row[4] > 0),
            "kind": "not finite" if row[4] > 0 else "spike",
            "loss": row[0] if math.isfinite(row[0]) else None,
            "mean": row[2] if math.isfinite(row[2]) else None,
            "length": step.batches[0][0].length if step.batches else 0,
            "ranks": dist.get_world_size(),
            "zero_stage": trainer.engine.stage,
            "threads": torch.get_num_threads(),
            "weights": origin,
        }
        if error := record.write(trainer.plan.directory, facts, step, weights, config.keep):
            trainer.recorder.warn(f"{trainer.plan.directory / record.FOLDER} cannot be written: {error}")
        trainer.recorder.warn(
            f"step {step.step + 1} {_DONE[reaction]}: {facts['problem']}. mcframe replay {trainer.plan.directory} "
            "repeats it."
        )

    def _weights_before(self, step: RecentStep, kept: bool) -> tuple[dict[str, torch.Tensor] | None, str]:
        """Return the weights before a step, None where they no longer exist, and which ones a replay takes."""
        trainer = self._trainer
        if kept and self._undo is not None:
            return record.complete_weights(trainer.engine.step, self._undo.before), "the step"
        if step is self.recent.last and trainer.engine.overflowed:
            return record.complete_weights(trainer.engine.step), "the step"
        trainer.save_checkpoint.wait(trainer)
        last = trainer.save_checkpoint.last
        return None, last.name if last is not None else "the start"

    def _error(self, step: RecentStep, row: list[float], reaction: str) -> Exception:
        """Return the error of a run that stops."""
        if row[4] > 0:
            error = not_finite(self._trainer, step, row[0])
        else:
            error = UserError(
                f"step {step.step + 1}: {record.describe(row, nonfinite=False)}",
                remedy="Set anomaly.on_spike to 'skip' or 'roll_back', lower optimizer.lr, or remove the batch.",
            )
        if reaction != "stop" and isinstance(error, UserError):
            limit = f"anomaly.limit = {self._config.limit} in {self._config.limit_steps} steps is reached"
            error.message = f"{limit}; {error.message}"
        return error

    def _roll_back(self, step: RecentStep) -> None:
        """Load the newest checkpoint, and omit the batch of a step from now on. Collective."""
        trainer = self._trainer
        assert trainer.save_checkpoint.last is not None
        events, rollbacks, dropped = self._events, self.rollbacks + 1, [*self._dropped, step.position]
        checkpoint = find(trainer.save_checkpoint.last)
        trainer.restored = load(trainer.engine, checkpoint)
        trainer.save_checkpoint.restore(trainer, checkpoint)
        self._events, self.rollbacks, self._dropped = events, rollbacks, dropped
        trainer.rewind()

    def metrics(self) -> dict[str, float]:
        """Return the counts, where the run can have any."""
        counts = {"train/skipped_steps": ("skip", self.skipped), "train/rollbacks": ("roll_back", self.rollbacks)}
        return {name: float(n) for name, (reaction, n) in counts.items() if n or self._config.reacts(reaction)}

    def state(self) -> dict[str, Any]:
        """Return counts and losses as values of JSON, equal on all ranks. Synchronises."""
        return {
            "skipped": self.skipped, "rollbacks": self.rollbacks, "events": list(self._events),
            "dropped": list(self._dropped), "losses": self._window.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any] | None) -> None:
        """Restore the result of `state`; None, of an older checkpoint, stands for no anomaly so far."""
        self.recent.clear()
        if state is not None:
            self.skipped, self.rollbacks = state["skipped"], state["rollbacks"]
            self._events, self._dropped = list(state["events"]), list(state["dropped"])
            self._window.restore(state["losses"])


def masked(metrics: StepMetrics, good: torch.Tensor) -> StepMetrics:
    """Return the metrics of a step if the flag is set, else values that count for nothing."""
    return StepMetrics(
        **{
            each.name: {
                name: torch.where(good, value, _FILL.get(each.name, 0))
                for name, value in getattr(metrics, each.name).items()
            }
            for each in fields(StepMetrics)
        }
    )
