"""Write checkpoints, and resume from one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from mcframe.config.training_schema import CheckpointConfig
from mcframe.training import checkpoints
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.random_states import restore_random_states

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer


class SaveCheckpoint(TrainerCallback):
    """Write a checkpoint of everything that a run needs to resume.

    Attributes:
        last: The folder of the newest checkpoint of the run, None before the first.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__(config.every)
        self._keep = config.keep
        self.last: Path | None = None

    def due(self, trainer: Trainer) -> bool:
        """Return whether it is due: after the first step, too, if the run may have to return to a checkpoint."""
        first = self.last_tokens < 0 and trainer.state.step > 0 and trainer.run_config.anomaly.reacts("roll_back")
        return first or super().due(trainer)

    def run(self, trainer: Trainer) -> None:
        """Write a checkpoint. Anomalies have been resolved: see `AnomalyResponse.resolve`."""
        started = time.monotonic()
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, trainer.loader.state())
        shared = {
            "step": trainer.state.step,
            "loader": trainer.loader.merge(states),
            "first": trainer.recorder.first,
            "last": trainer.recorder.last,
            "reports": trainer.reports(),
            "anomalies": trainer.anomalies.state(),
        }
        trainer.accumulator.add(trainer.timers.collect())
        own = {
            "accumulator": trainer.accumulator.state(),
            "weights": trainer.update_ratio.state(),
            "callbacks": trainer.plugins.state(),
        }
        position = {"tokens": trainer.state.tokens, "bindings": dict(trainer.plan.bindings), "data": trainer.data}
        self.last = checkpoints.save(trainer.engine, trainer.plan.directory, position, shared, own, self._keep)
        recorder = trainer.recorder
        recorder.hooks.checkpoint_saved(recorder.info(), self.last)
        # Not part of the checkpoint: a run resumed from here resumes from the figures of the last interval.
        recorder.write({"train/checkpoint_ms": 1000 * (time.monotonic() - started)})

    def restore(self, trainer: Trainer, checkpoint: checkpoints.Checkpoint) -> None:
        """Resume from a checkpoint, which has been loaded before. Collective."""
        assert trainer.restored is not None
        shared, own = trainer.restored
        restore_random_states(own["random"])
        if dist.get_rank() == 0:
            checkpoints.archive(trainer.plan.directory, checkpoint.tokens)
        trainer.state.step = shared["step"]
        trainer.recorder.first, trainer.recorder.last = shared["first"], shared["last"]
        trainer.restore_reports(shared.get("reports"))
        trainer.loader.restore(shared["loader"])
        trainer.anomalies.restore(shared.get("anomalies"))
        trainer.accumulator.restore(own["accumulator"])
        trainer.update_ratio.restore(own.get("weights"))
        trainer.plugins.restore(own.get("callbacks", {}))
        self.last, self.last_tokens = checkpoint.path, trainer.state.tokens
        trainer.recorder.hooks.checkpoint_loaded(trainer.recorder.info(), checkpoint.path)
