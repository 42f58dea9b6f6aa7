"""Write checkpoints, and resume from one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from mcframe.config.training_schema import CheckpointConfig
from mcframe.metrics.jsonl_logger import METRICS, entries
from mcframe.training import checkpoints
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.random_states import restore_random_states, seed_random_states

CHECKPOINT_MS = "train/checkpoint_ms"

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
            "reports": trainer.reports(),
        }
        trainer.accumulator.add(trainer.timers.collect())
        own = {
            "accumulator": trainer.accumulator.state(),
            "weights": trainer.update_ratio.state(),
            "callbacks": trainer.plugins.state(),
        }
        position = {
            "tokens": trainer.state.tokens, "bindings": dict(trainer.plan.bindings), "data": trainer.data,
            "started": time.time(),
        }  # fmt: skip
        self.last = checkpoints.save(trainer.engine, trainer.plan.directory, position, shared, own, self._keep)
        recorder = trainer.recorder
        recorder.hooks.checkpoint_saved(recorder.info(), self.last)
        # Not part of the checkpoint: a run resumed from here resumes from the figures of the last interval.
        recorder.write({CHECKPOINT_MS: 1000 * (time.monotonic() - started)})

    @staticmethod
    def lost_time(run_dir: Path, checkpoint: checkpoints.Checkpoint) -> float | None:
        """Return the milliseconds of a checkpoint whose run was killed before it logged them; None if it was not."""
        started = checkpoint.facts.get("started")
        rows = [each for each in entries(run_dir / METRICS) if each["tokens"] == checkpoint.tokens]
        foreign = checkpoint.path.parents[1].resolve() != run_dir.resolve()
        if started is None or foreign or any(CHECKPOINT_MS in each for each in rows):
            return None
        return max(0.0, 1000 * ((checkpoint.path / checkpoints.COMPLETE).stat().st_mtime - float(started)))

    def restore(self, trainer: Trainer, checkpoint: checkpoints.Checkpoint) -> None:
        """Resume from a checkpoint, which has been loaded before. Collective."""
        assert trainer.restored is not None
        shared, own = trainer.restored
        if own["random"] is None:  # of a rank that the run has not had before
            seed_random_states(trainer.run_config.seed, checkpoint.tokens, dist.get_rank())
        else:
            restore_random_states(own["random"])
        trainer.state.step = shared["step"]
        trainer.recorder.first, trainer.recorder.last = shared["first"], shared["last"]
        trainer.restore_reports(shared.get("reports"))
        trainer.loader.restore(shared["loader"])
        trainer.accumulator.restore(own["accumulator"])
        trainer.update_ratio.restore(own["weights"])
        trainer.plugins.restore(own["callbacks"])
        self.last, self.last_tokens = checkpoint.path, trainer.state.tokens
        trainer.recorder.hooks.checkpoint_loaded(trainer.recorder.info(), checkpoint.path)
