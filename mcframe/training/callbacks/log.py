"""Log the metrics of a logging interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from rich.text import Text

from mcframe.context.step_metrics import StepMetrics
from mcframe.training.anomaly_response import masked
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.throughput import memory

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer


class Log(TrainerCallback):
    """Read the accumulated metrics back, and write them to the loggers."""

    def run(self, trainer: Trainer) -> None:
        """Log, and start the next interval. The norm of the last step is omitted if that step was skipped."""
        accumulator, engine, state = trainer.accumulator, trainer.engine, trainer.state
        accumulator.add(trainer.timers.collect() | memory(trainer.device))
        accumulator.add(trainer.update_ratio.collect())
        norms = {name: norm.to(trainer.device, torch.float64) for name, norm in engine.gradient_norms.items()}
        means = {name: torch.stack((norm, torch.ones_like(norm))) for name, norm in norms.items()}
        accumulator.add(masked(StepMetrics(means=means), trainer.anomalies.good))
        # Waits for the device, so that the throughput below is that of finished work.
        reading = accumulator.read()
        recorder = trainer.recorder
        metrics = reading.metrics
        metrics |= trainer.throughput.metrics(lambda note: recorder.progress.message(Text(note, style="yellow")))
        metrics |= {
            "train/lr": trainer.learning_rate,
            "train/tokens": float(state.tokens),
            "train/tokens_per_step": float(state.batch_tokens),
            "train/grad_accum_steps": float(engine.accumulation),
            "mc/grad_accum_steps": float(engine.accumulation),
        }
        metrics |= trainer.anomalies.metrics()
        if engine.compiled is not None:
            metrics |= engine.compiled.metrics()
        recorder.publish(metrics)
        trainer.warn_of_first_interval(metrics)
        recorder.record(reading)
        trainer.throughput.restart()
