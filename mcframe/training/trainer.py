"""The training loop. `Trainer.step` is one optimizer step; callbacks do everything else, every so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from rich.text import Text

from mcframe.context.counter_rng import variant_seeds
from mcframe.data.loader import Loader
from mcframe.metrics.accumulator import Accumulator
from mcframe.metrics.loggers import Loggers
from mcframe.metrics.timers import Timers
from mcframe.registry.attribution import exits_as_errors, last_line
from mcframe.registry.lifecycle import Lifecycle
from mcframe.training.anomaly_response import AnomalyResponse
from mcframe.training.budgets import check_budgets
from mcframe.training.build import Components, training_stream, validation_windows
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.callbacks.checkpoint import SaveCheckpoint
from mcframe.training.callbacks.evaluate import Evaluate, subject
from mcframe.training.callbacks.figures import Figures
from mcframe.training.callbacks.log import Log
from mcframe.training.callbacks.plugins import PluginCallbacks
from mcframe.training.callbacks.sample import Sample
from mcframe.training.callbacks.validate import CONTEXTS, Validate
from mcframe.training.engine import Engine
from mcframe.training.eval_mode import eval_mode
from mcframe.training.evaluation import eval_model
from mcframe.training.first_interval import FirstInterval
from mcframe.training.nonfinite import failed_backward
from mcframe.training.probe import probe_allocator, probe_plugins
from mcframe.training.random_states import unchanged_random_states
from mcframe.training.recorder import Recorder
from mcframe.training.resume_rules import data_identity
from mcframe.training.run_directory import RunPlan
from mcframe.training.stop_signal import StopSignal
from mcframe.training.throughput import ThroughputMeter
from mcframe.training.train_state import TrainState
from mcframe.training.train_step import StepBatch
from mcframe.training.update_ratio import UpdateRatio
from mcframe.training.watchers import collected_warnings


class Trainer:
    """One run on one rank: loader, engine, state and callbacks.

    Args:
        components: The components of the run.
        engine: The engine around `components.step`.
        plan: Where the run writes, and the checkpoint that it resumes from.
        record_start: Writes what describes the run, and returns its loggers. Called after the first step.
        hooks: Lifecycle hooks of plug-ins.
        device: The device of this rank.
        plugins: Callbacks of plug-ins.
        restored: The state of the checkpoint of `plan`, if there is one: see `checkpoints.load`.
    """

    def __init__(
        self,
        components: Components,
        engine: Engine,
        plan: RunPlan,
        record_start: Callable[[], Loggers],
        hooks: Lifecycle,
        device: torch.device,
        plugins: PluginCallbacks | None = None,
        restored: tuple[dict[str, Any], dict[str, Any]] | None = None,
    ) -> None:
        self.restored, self.data = restored, data_identity(components)
        self.components, self.engine, self.plan, self.device = components, engine, plan, device
        config = self.run_config = components.run_config
        rank, world_size = dist.get_rank(), dist.get_world_size()
        self.state = TrainState(config.batch_tokens, config.steps)
        self.accumulator, self.timers = Accumulator(device), Timers(device)
        engine.time_with(self.timers.phase)
        self.update_ratio = UpdateRatio(engine.step, device)
        self.anomalies = AnomalyResponse(self, config.anomaly)
        self.plugins = plugins or PluginCallbacks()
        others = [*components.callbacks, *components.evaluations]
        self.first_interval = FirstInterval(engine.step, engine.watch, others, keep_watching=engine.stage == 3)
        self.recorder = Recorder(plan, components.tree, self.state, record_start, hooks, self.plugins)
        self.loader = Loader(
            training_stream(components, rank, world_size),
            batch_sequences=config.sequences, micro_batch=engine.micro_batch,
            rank=rank, world_size=world_size, pin=device.type == "cuda",
        )  # fmt: skip
        self.held_out, loss_mask = validation_windows(components)
        self.throughput = ThroughputMeter(
            components, self.state, micro_batch=engine.micro_batch, world_size=world_size, device=device
        )
        self.log, self.save_checkpoint = Log(config.logging.every), SaveCheckpoint(config.checkpoint)
        # What only watches comes after the checkpoint of its step. The log comes before it: it ends an interval.
        self.callbacks: list[TrainerCallback] = [
            self.log,
            self.save_checkpoint,
            Validate(config.validation, components, self.held_out, loss_mask, engine.micro_batch, device),
            Sample(config.sampling),
            Figures(config.figures),
            Evaluate(config.evaluation, eval_model(config, components.tokenizer, engine.model, device)),
        ]
        self.watchers = self.plugins.watchers
        hooks.guard = self.watchers.call
        self.watchers.declare(*hooks.subjects, every_step=True)
        own = [each.watches for each in self.callbacks if each.watches]
        self.watchers.declare(*own, CONTEXTS, *map(subject, components.evaluations))

    def watch_with(self, callback: TrainerCallback) -> None:
        """Add a callback that only watches. Call it before `run`, on every rank."""
        self.callbacks.append(callback)
        self.watchers.declare(callback.watches)

    def run(self) -> dict[str, Any]:
        """Train to the end or until a stop is requested. Return the summary."""
        recorder = self.recorder
        try:
            with exits_as_errors(), collected_warnings(recorder.warnings):
                status = self._train()
                recorder.loggers.close()
        except Exception as error:
            self.save_checkpoint.give_up(error)
            try:
                recorder.loggers.close()
            except Exception as another:  # noqa: BLE001 - a full disk fails twice; the hook is called all the same
                error.add_note(f"the loggers could not be closed either: {last_line(another)}")
            recorder.hooks.run_failed(recorder.info(), error)
            raise
        return recorder.finish(status, self.save_checkpoint.last)

    def _train(self) -> str:
        """Return the status at the end: `finished`, `interrupted`, or `stopped` by a callback."""
        self.save_checkpoint.start(self)
        self.recorder.start()
        self.first_step = self.announced = self.state.step
        status, stop_signal = "finished", StopSignal()
        self.stopped_by = 0
        try:
            self.recorder.hooks.run_started(self.recorder.info())
            with unchanged_random_states():  # a resumed run must draw what the uninterrupted one draws
                tokenizer, allocator = self.components.tokenizer, self.run_config.allocator
                self.plugins.start(self.engine.step, self.recorder.info(), tokenizer, allocator)
            self._probe()
            self._report_again()
            self._run_callbacks(stop_signal)
            self.throughput.restart()
            while not self.state.finished:
                if self.plugins.stop_requested(stop_signal):
                    status, self.state.stopped = "stopped", True
                    self._begin()
                    self._run_callbacks(stop_signal)
                    break
                self.step()
                self._begin()
                self.plugins.settle(self.accumulator, stop_signal)
                self._run_callbacks(stop_signal, save=stop_signal.agreed() > 0)  # before what may take long
                self.save_checkpoint.poll(self, stop_signal)
                if (number := stop_signal.agreed()) and not self.state.finished:
                    status, self.stopped_by = "interrupted", number
                    self.save_checkpoint(self)
                    break
            self._begin()  # of a run that has no step left, but reports
            self.save_checkpoint.wait(self)
        finally:
            stop_signal.restore()
            self.loader.close()
            self.recorder.progress.close()
        return status

    def _begin(self) -> None:
        """Write to the run directory from the first complete step on: a start that fails before changes no file."""
        if not self.recorder.begun:
            self.throughput.pause()
            self.recorder.begin()
            self.throughput.resume()

    def _probe(self) -> None:
        """Check what plug-ins return on two held-out windows, and the budgets of the allocator."""
        config, count = self.run_config, self.components.model.strategy.count
        lengths = (config.variant_length(0), *config.extreme_lengths) if count else (0,)
        with eval_mode(self.engine.wrapped):
            tokens = self.held_out[:2].to(self.device)
            for warning in probe_plugins(self.engine.step, self.engine, tokens, lengths):
                self.recorder.warn(warning)
            if self.engine.compiled is not None:
                # One graph hides the results of plug-ins.
                with unchanged_random_states():
                    seeds = variant_seeds(config.seed, torch.arange(len(tokens), device=self.device), count)
                    self.engine(StepBatch(tokens, seeds, lengths[0]))
                self.first_interval.check_graph()
        if count:
            allocator = self.components.allocator
            for warning in check_budgets(config, allocator, self.components.evaluations):
                self.recorder.warn(warning)
            probe_allocator(allocator, self.components.tree, min(lengths), self.device)

    def step(self) -> None:
        """Run one optimizer step: micro-batches forward and backward, then the update. Reads no tensor back."""
        length = self.run_config.variant_length(self.state.step) if self.components.model.strategy.count else 0
        self.engine.step.begin_step(self.run_config.progress(self.state.step))
        self.learning_rate = self.engine.learning_rate
        self.plugins.begin_step()
        step, tokens_after = self.state.step, self.state.tokens + self.state.batch_tokens
        timed = self.timers.phase
        with self.timers.step():
            with timed("optimizer"):
                self.anomalies.begin_step()
            for _ in range(self.engine.accumulation):
                with timed("data"):
                    batch = self._next_batch(length)
                loss, metrics = self.engine(batch)
                self.first_interval.check_graph()
                with timed("metrics"):
                    self.anomalies.add(batch, loss, metrics)
                    self.plugins.add(metrics)
                try:
                    self.engine.backward_and_step(loss, lambda: self.plugins.after_backward(step, tokens_after))
                except RuntimeError as error:
                    if (failure := failed_backward(self, batch, error)) is error:
                        raise
                    raise failure from error
            self.engine.step.after_step()
            with timed("optimizer"):
                self.anomalies.end_step()
            self.plugins.after_step(step, tokens_after)
        for seconds, note in () if self.engine.compiled is None else self.engine.compiled.notes():
            self.throughput.exclude(seconds)
            self.recorder.progress.message(Text(note))
        self.state.advance()
        self.recorder.progress.update(self.state.tokens)

    def _next_batch(self, length: int) -> StepBatch:
        """Return the next micro-batch on the device, for variants of this length."""
        batch = next(self.loader)
        tokens = batch.tokens.to(self.device, non_blocking=True)
        indices = batch.indices.to(self.device, non_blocking=True)
        loss_mask = None if batch.loss_mask is None else batch.loss_mask.to(self.device, non_blocking=True)
        seeds = variant_seeds(self.run_config.seed, indices, self.components.model.strategy.count)
        return StepBatch(tokens, seeds, length, loss_mask)

    def _run_callbacks(self, stop_signal: StopSignal, *, save: bool = False) -> None:
        """Run the callbacks that are due, in order, then those that watch. Their time does not count as training.

        Args:
            stop_signal: The group in which the ranks agree on callbacks that failed.
            save: Save although no checkpoint is due.
        """
        due = [
            each for each in self.callbacks
            if (each.due(self) or (save and each is self.save_checkpoint)) and not self.watchers.is_off(each.watches)
        ]  # fmt: skip
        if (due or self.anomalies.urgent) and self.anomalies.resolve():
            return
        if due and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # queued steps count as training
        self.throughput.pause()
        for callback in due:
            if not callback.watches:
                callback(self)
        if self.announced < self.state.step:
            self.announced = self.state.step
            self.recorder.hooks.step_finished(self.recorder.info())
        self.recorder.show()
        for callback in due:
            if callback.watches:
                self.watchers.call(callback.watches, partial(callback, self))
                self.recorder.show()
        if due:
            self.watchers.agree(stop_signal)
        self.throughput.resume()

    def _report_again(self) -> None:
        """Do not repeat in a resumed run what was reported after its checkpoint; what was not comes next."""
        left = self.recorder.unshown or any(callback.due(self) for callback in self.callbacks)
        if self.plan.checkpoint is not None and left and self.recorder.replay(self.reported_before):
            for callback in self.callbacks:
                callback.last_tokens = self.state.tokens

    def reports(self) -> dict[str, Any]:
        """Return what a run resumed from here has to report first: metrics, and what has been done at which tokens."""
        done = {type(callback).__name__: callback.last_tokens for callback in self.callbacks}
        tokens, names = self.recorder.shown
        shown = sorted(names) if tokens == self.state.tokens else []
        return {"metrics": [dict(metrics) for metrics in self.recorder.unshown], "done": done, "shown": shown}

    def restore_reports(self, reports: Mapping[str, Any]) -> None:
        """Restore the result of `reports`."""
        for callback in self.callbacks:
            callback.last_tokens = reports["done"].get(type(callback).__name__, callback.last_tokens)
        self.log.last_tokens = self.state.tokens  # it comes before the checkpoint, and needs a step
        self.recorder.unshown = [dict(metrics) for metrics in reports["metrics"]]
        self.reported_before = reports["shown"]

    def warn_of_first_interval(self, metrics: Mapping[str, float]) -> None:
        """Print what the first logging interval shows of plug-ins that go wrong quietly."""
        config, step = self.run_config, self.state.step
        compressed = (
            bool(self.components.model.strategy.count) and config.variant_length(step - 1) < config.context.window
        )
        for warning in self.first_interval.look(metrics, step - self.first_step, compressed):
            self.recorder.warn(warning)

    def rewind(self) -> None:
        """Continue from the earlier checkpoint that has been restored: what was reported after it is superseded."""
        self.recorder.rewind()
        for callback in self.callbacks:
            callback.last_tokens = self.state.tokens
        self.first_step, self.announced = min(self.first_step, self.state.step), self.state.step
        self.timers.collect()
        self.throughput.restart()
