"""Write checkpoints, and resume from one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from mcframe.config.training_schema import CheckpointConfig
from mcframe.training import checkpoints
from mcframe.training.callbacks.base import TrainerCallback

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

    def run(self, trainer: Trainer) -> None:
        """Write a checkpoint.

        Raises:
            UserError: Loss or gradient is not finite on some rank, so that no good checkpoint is replaced.
        """
        started = time.monotonic()
        loss = trainer.loss.double()
        dist.all_reduce(loss)
        norm = trainer.engine.gradient_norms.get("train/grad_norm")
        trainer.check_finite(float(loss) / dist.get_world_size(), None if norm is None else float(norm))
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, trainer.loader.state())
        shared = {
            "step": trainer.state.step,
            "loader": trainer.loader.merge(states),
            "first": trainer.recorder.first,
            "last": trainer.recorder.last,
        }
        trainer.accumulator.add(trainer.timers.collect())
        own = {
            "accumulator": trainer.accumulator.state(),
            "weights": trainer.update_ratio.state(),
            "callbacks": trainer.plugins.state(),
        }
        self.last = checkpoints.save(
            trainer.engine, trainer.plan.directory, _data_position(trainer), shared, own, self._keep
        )
        recorder = trainer.recorder
        recorder.hooks.checkpoint_saved(recorder.info(), self.last)
        # Not part of the checkpoint: a run resumed from here resumes from the figures of the last interval.
        recorder.write({"train/checkpoint_ms": 1000 * (time.monotonic() - started)})

    def restore(self, trainer: Trainer, checkpoint: checkpoints.Checkpoint) -> None:
        """Resume from a checkpoint. Collective."""
        shared, own = checkpoints.load(trainer.engine, checkpoint, _data_position(trainer))
        trainer.engine.apply_schedule()
        if dist.get_rank() == 0:
            checkpoints.archive(trainer.plan.directory, checkpoint.tokens)
        trainer.state.step = shared["step"]
        trainer.recorder.first, trainer.recorder.last = shared["first"], shared["last"]
        trainer.loader.restore(shared["loader"])
        trainer.accumulator.restore(own["accumulator"])
        trainer.update_ratio.restore(own.get("weights"))
        trainer.plugins.restore(own.get("callbacks", {}))
        self.last, self.last_tokens = checkpoint.path, trainer.state.tokens
        trainer.recorder.hooks.checkpoint_loaded(trainer.recorder.info(), checkpoint.path)


def _data_position(trainer: Trainer) -> dict[str, int]:
    """Return the token count and the settings that it depends on, by their names in gin."""
    config = trainer.run_config
    return {
        "tokens": trainer.state.tokens,
        "run.batch_tokens": config.batch_tokens,
        "context.window": config.context.window,
        "run.seed": config.seed,
    }
