"""React to losses and gradients that are not finite, and to spikes of the loss: stop, skip or roll back, on all ranks.

Every step leaves flags on the device. They are read before anything that depends on the weights: a log line, a
checkpoint, a validation, the end. A step is skipped on the device at once; the rest happens when the flags are read.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.config.training_schema import AnomalyConfig
from mcframe.context.step_histograms import NO_POINT
from mcframe.context.step_metrics import StepMetrics
from mcframe.errors import UserError
from mcframe.training.anomaly_record import FOLDER, AnomalyFacts, write
from mcframe.training.checkpoint_folder import find
from mcframe.training.checkpoints import load
from mcframe.training.nonfinite import not_finite
from mcframe.training.recent_steps import LossWindow, RecentStep, RecentSteps
from mcframe.training.step_undo import StepUndo, complete_weights
from mcframe.training.weights import load_weights

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer

DECLARED_METRICS = {
    "train/skipped_steps": ("steps", "lower", "steps skipped so far, by anomaly.on_nonfinite or anomaly.on_spike"),
    "train/rollbacks": ("rollbacks", "lower", "returns to the newest checkpoint so far, by the same settings"),
}
_DONE = {"skip": "skipped", "roll_back": "rolled back", "stop": "stops the run"}
_FILL = {"samples": torch.nan, "points": NO_POINT}
"""Values of a skipped step's metrics that count for nothing; 0 in all other fields."""


class AnomalyResponse:
    """The reaction of a run to anomalies.

    Args:
        trainer: The trainer.
        config: `anomaly` of the configuration.

    Attributes:
        recent: The steps since the flags were read.
        good: Whether the last step was not skipped, on the device.
        skipped: Steps skipped so far, as far as the flags have been read.
        rollbacks: Returns to a checkpoint so far.
    """

    def __init__(self, trainer: Trainer, config: AnomalyConfig) -> None:
        self._trainer, self._config = trainer, config
        self.recent, self.skipped, self.rollbacks = RecentSteps(), 0, 0
        self._anomalies: dict[int, int] = {}  # position in the data -> step, of batches that were not trained on
        self._dropped: list[int] = []  # positions of those that were rolled back
        self._window = LossWindow(config.spike_window, trainer.device)
        self._undo = StepUndo(trainer.engine, trainer.device) if config.reacts("skip") else None
        # Otherwise ranks compare their flags when these are read.
        self._each_step = self._undo is not None or config.on_spike != "ignore"
        self._metrics: list[StepMetrics] = []
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

    def add(self, batch: Any, loss: Tensor, metrics: StepMetrics) -> None:
        """Add a micro-batch."""
        self.recent.add(batch, loss)
        self._metrics.append(metrics)

    @torch.no_grad()
    def end_step(self) -> None:
        """Set the flags of a step, undo it if it is skipped, and count its metrics if not. Reads nothing back."""
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
        spike &= ~nonfinite
        if config.on_spike != "ignore":  # otherwise a loss is that of this rank
            self._window.put(step.step, loss, ~(nonfinite | spike))
        step.row = torch.stack((loss, mean, deviation, nonfinite.double(), spike.double()))
        if self._undo is not None:
            bad = [nonfinite] * (config.on_nonfinite == "skip") + [spike] * (config.on_spike == "skip")
            self.good = ~torch.stack(bad).any()
            self._undo.undo_unless(self.good)
        for metrics in self._metrics:
            self._trainer.accumulator.add(metrics if self._undo is None else masked(metrics, self.good))
        self._metrics = []

    @property
    def urgent(self) -> bool:
        """True if DeepSpeed has found a gradient that is not finite, and the run stops or rolls back for it."""
        return self._trainer.engine.overflowed and self._config.on_nonfinite != "skip"

    def resolve(self) -> bool:
        """Read the flags and react. Return whether the run is at an earlier checkpoint now. Collective.

        Raises:
            UserError: The run stops, by setting, or since it cannot continue.
        """
        unread, first = self.recent.unread(), True
        for step, (loss, mean, deviation, nonfinite, spike) in zip(unread, self._read(unread), strict=True):
            setting = self._config.on_nonfinite if nonfinite else self._config.on_spike
            if setting == "ignore" or not (nonfinite or spike):
                continue
            reason = "" if setting == "stop" else self._reason_to_stop(step, setting)
            reaction = "stop" if reason else setting
            weights, origin = self._weights_before(step, undone=first and setting == "skip")
            facts = AnomalyFacts(
                step=step.step + 1, position=step.position, reaction=reaction, nonfinite=nonfinite > 0, loss=loss,
                mean=mean, deviation=deviation, length=step.batches[0][0].length if step.batches else 0,
                ranks=dist.get_world_size(), threads=torch.get_num_threads(), weights=origin,
            )  # fmt: skip
            self._report(facts, step, weights)
            if reaction == "stop":
                raise self._error(facts, step, reason)
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

    def _reason_to_stop(self, step: RecentStep, setting: str) -> str:
        """Count an anomaly, and return why the run cannot continue, if it cannot."""
        config = self._config
        self._anomalies[step.position] = step.step
        if sum(each > step.step - config.limit_steps for each in self._anomalies.values()) > config.limit:
            return f" anomaly.limit = {config.limit} within {config.limit_steps} steps is exceeded."
        self._trainer.save_checkpoint.wait(self._trainer)
        if setting == "roll_back" and self._trainer.save_checkpoint.last is None:
            return " The run has no checkpoint yet."
        return ""

    def _weights_before(self, step: RecentStep, *, undone: bool) -> tuple[dict[str, Tensor] | None, str]:
        """Return the weights before a step, else those of the newest checkpoint, and their origin.

        None stands for those at the start, which a replay builds again, and for a damaged checkpoint.
        """
        trainer = self._trainer
        if undone and self._undo is not None:
            return complete_weights(trainer.engine.step, self._undo.before), "the step"
        if step is self.recent.last and trainer.engine.overflowed:  # DeepSpeed has not updated them
            return complete_weights(trainer.engine.step, {}), "the step"
        trainer.save_checkpoint.wait(trainer)
        weights, last = None, trainer.save_checkpoint.last
        if last is None:
            return None, "the start"
        with suppress(UserError):
            weights = load_weights(find(last)) if dist.get_rank() == 0 else None
        return weights, last.name

    def _report(self, facts: AnomalyFacts, step: RecentStep, weights: dict[str, Tensor] | None) -> None:
        """Save the batch, and print one line."""
        directory, recorder = self._trainer.plan.directory, self._trainer.recorder
        if error := write(directory, facts, step, weights, self._config.keep):
            recorder.warn(f"{directory / FOLDER} cannot be written: {error}")
        done = f"step {facts.step} {_DONE[facts.reaction]}: {facts.problem}"
        recorder.warn(f"{done}. mcframe replay {shlex.quote(str(directory))} repeats it.")

    def _error(self, facts: AnomalyFacts, step: RecentStep, reason: str) -> Exception:
        """Return the error of a run that stops."""
        spike = UserError(
            f"step {facts.step}: {facts.problem}",
            remedy="Set anomaly.on_spike to 'skip' or 'roll_back', lower optimizer.lr, or remove the batch.",
        )
        error = not_finite(self._trainer, step, facts.loss) if facts.nonfinite else spike
        error.remedy += reason
        return error

    def _roll_back(self, step: RecentStep) -> None:
        """Load the newest checkpoint, and omit the batch of a step from now on. Collective."""
        trainer = self._trainer
        assert trainer.save_checkpoint.last is not None
        anomalies, rollbacks, dropped = self._anomalies, self.rollbacks + 1, [*self._dropped, step.position]
        checkpoint = find(trainer.save_checkpoint.last)
        trainer.restored = load(trainer.engine, checkpoint)
        trainer.save_checkpoint.restore(trainer, checkpoint)
        self._anomalies, self.rollbacks, self._dropped = anomalies, rollbacks, dropped
        trainer.rewind()

    def metrics(self) -> dict[str, float]:
        """Return the counts, where the run can have any."""
        counts = {"train/skipped_steps": ("skip", self.skipped), "train/rollbacks": ("roll_back", self.rollbacks)}
        return {name: float(n) for name, (reaction, n) in counts.items() if n or self._config.reacts(reaction)}

    def state(self) -> dict[str, Any]:
        """Return counts and losses, equal on all ranks."""
        return {
            "skipped": self.skipped, "rollbacks": self.rollbacks, "anomalies": dict(self._anomalies),
            "dropped": list(self._dropped), "losses": self._window.values,
        }  # fmt: skip

    def restore(self, state: dict[str, Any] | None) -> None:
        """Restore the result of `state`; None, of an older checkpoint, stands for no anomaly so far."""
        self.recent.clear()
        if state is not None:
            self.skipped, self.rollbacks = state["skipped"], state["rollbacks"]
            self._anomalies, self._dropped = dict(state["anomalies"]), list(state["dropped"])
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
