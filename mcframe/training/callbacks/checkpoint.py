"""Write checkpoints, and resume from one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from mcframe.config.training_schema import CheckpointConfig
from mcframe.errors import is_lost_connection
from mcframe.hookspecs import RunInfo
from mcframe.metrics.jsonl_logger import METRICS, entries
from mcframe.training import checkpoints
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.checkpoint_folder import COMPLETE, Checkpoint
from mcframe.training.checkpoint_writer import CheckpointWriter
from mcframe.training.random_states import restore_random_states, seed_random_states
from mcframe.training.stop_signal import StopSignal

CHECKPOINT_MS = "train/checkpoint_ms"

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer

_LAST_WAIT_S = 60.0
"""Seconds that a run that has failed waits for a checkpoint in flight."""


class SaveCheckpoint(TrainerCallback):
    """Write a checkpoint of everything that a run needs to resume.

    Attributes:
        last: The folder of the newest complete checkpoint of the run, None before the first.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__(config.every)
        self._keep, self._asynchronous = config.keep, config.asynchronous
        store = dist.distributed_c10d._get_default_store()
        self._writer = CheckpointWriter(store, dist.get_rank(), dist.get_world_size())
        self._saved: RunInfo | None = None  # the run at the checkpoint in flight
        self.last: Path | None = None

    def due(self, trainer: Trainer) -> bool:
        """Return whether it is due: after the first step, too, if the run may have to return to a checkpoint."""
        first = self.last_tokens < 0 and trainer.state.step > 0 and trainer.run_config.anomaly.reacts("roll_back")
        return first or super().due(trainer)

    def start(self, trainer: Trainer) -> None:
        """Restore the checkpoint of the plan, if there is one. Collective."""
        if trainer.plan.checkpoint is not None:
            self.restore(trainer, trainer.plan.checkpoint)

    def run(self, trainer: Trainer) -> None:
        """Write a checkpoint, or start to, if checkpoints are asynchronous. Waits for the one before.

        Raises:
            UserError: The state is not finite on some rank, so that no good checkpoint is replaced; or the checkpoint
                before could not be written. Anomalies have been resolved: see `AnomalyResponse.resolve`.
        """
        started = time.monotonic()
        self.wait(trainer)
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, trainer.loader.state())
        recorder = trainer.recorder
        shared = {
            "step": trainer.state.step,
            "loader": trainer.loader.merge(states),
            "first": dict(recorder.first),
            "last": dict(recorder.last),
            "reports": trainer.reports(),
            "anomalies": trainer.anomalies.state(),
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
        directory, self._saved = trainer.plan.directory, recorder.info()
        checkpoints.save(self._writer, trainer.engine, directory, position, shared, own, self._keep)
        if not self._asynchronous:
            self.wait(trainer)
        # Not part of the checkpoint: a run resumed from here resumes from the figures of the last interval.
        recorder.write({CHECKPOINT_MS: 1000 * (time.monotonic() - started)})

    @staticmethod
    def lost_time(run_dir: Path, checkpoint: Checkpoint) -> float | None:
        """Return the milliseconds of a checkpoint whose run was killed before it logged them; None if it was not."""
        started = checkpoint.facts.get("started")
        rows = [each for each in entries(run_dir / METRICS) if each["tokens"] == checkpoint.tokens]
        foreign = checkpoint.path.parents[1].resolve() != run_dir.resolve()
        if started is None or foreign or any(CHECKPOINT_MS in each for each in rows):
            return None
        return max(0.0, 1000 * ((checkpoint.path / COMPLETE).stat().st_mtime - float(started)))

    def poll(self, trainer: Trainer, stop_signal: StopSignal) -> None:
        """Announce a checkpoint that has become complete. Collective while one is in flight."""
        if self._writer.in_flight and not stop_signal.any_rank([not self._writer.finished])[0]:
            self.wait(trainer)

    def wait(self, trainer: Trainer) -> None:
        """Wait until a checkpoint in flight is complete, and announce it. Every rank must call it.

        Raises:
            UserError: It could not be written, on every rank.
        """
        written = self._writer.wait()
        if written is not None:
            self.last = written.path
            assert self._saved is not None
            trainer.recorder.hooks.checkpoint_saved(self._saved, self.last)
            trainer.recorder.write({"train/checkpoint_write_ms": 1000 * written.seconds})

    def give_up(self, error: Exception) -> None:
        """Let a checkpoint in flight become complete after an error of the run, if every rank may still write."""
        self._writer.give_up(0 if is_lost_connection(error) else _LAST_WAIT_S)

    def restore(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint, which has been loaded before."""
        assert trainer.restored is not None
        shared, own = trainer.restored
        if own["random"] is None:  # of a rank that the run has not had before
            seed_random_states(trainer.run_config.seed, checkpoint.tokens, dist.get_rank())
        else:
            restore_random_states(own["random"])
        trainer.state.step = shared["step"]
        trainer.recorder.first, trainer.recorder.last = shared["first"], shared["last"]
        trainer.restore_reports(shared["reports"])
        trainer.loader.restore(shared["loader"])
        trainer.anomalies.restore(shared.get("anomalies"))
        trainer.accumulator.restore(own["accumulator"])
        trainer.update_ratio.restore(own["weights"])
        trainer.plugins.restore(own["callbacks"])
        self.last, self.last_tokens = checkpoint.path, trainer.state.tokens
        trainer.recorder.hooks.checkpoint_loaded(trainer.recorder.info(), checkpoint.path)
