"""The training loop. One step reads top to bottom in `Trainer.step`; everything else fires on the token clock."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.text import Text

from mcframe.context.counter_rng import variant_seeds
from mcframe.context.step_histograms import blocks_by_lod
from mcframe.context.step_metrics import StepMetrics
from mcframe.data.loader import Loader
from mcframe.errors import UserError
from mcframe.evaluation.runner import headlines
from mcframe.hookspecs import RunInfo
from mcframe.metrics.accumulator import Accumulator, Reading
from mcframe.metrics.context_text import colored, key, strip
from mcframe.metrics.figure_recorder import FigureRecorder
from mcframe.metrics.loggers import Loggers
from mcframe.metrics.progress import Progress
from mcframe.metrics.summary import summarise, summary_table, write_summary
from mcframe.metrics.timers import Timers
from mcframe.registry.plugins import Lifecycle, last_line
from mcframe.training import checkpoints
from mcframe.training import sampling as watching
from mcframe.training.build import Components, training_stream, validation_windows
from mcframe.training.engine import Engine
from mcframe.training.evaluation import Evaluating
from mcframe.training.probe import probe_plugins
from mcframe.training.run_directory import OPERATIVE, RunPlan
from mcframe.training.stop_signal import StopSignal
from mcframe.training.throughput import ThroughputMeter, memory
from mcframe.training.train_state import TrainState
from mcframe.training.train_step import StepBatch
from mcframe.training.update_ratio import UpdateRatio
from mcframe.training.validation import Validation

SHOWN, FOCUSED = 3, 16
"""Held-out windows whose working contexts are printed, and all that LensNet focuses for the heat map."""


class Trainer:
    """One run on one rank: loader, engine, clock, and what watches them."""

    def __init__(
        self,
        components: Components,
        engine: Engine,
        plan: RunPlan,
        loggers: Loggers,
        hooks: Lifecycle,
        device: torch.device,
    ) -> None:
        run_config = components.run_config
        self.components, self.run_config, self.engine, self.plan = components, run_config, engine, plan
        self.loggers, self.hooks, self.device = loggers, hooks, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.clock = TrainState(run_config.batch_tokens, run_config.steps)
        self.accumulator = Accumulator(device)
        self.timers = Timers(device)
        engine.time_with(self.timers.phase)
        self.weight_change = UpdateRatio(engine.step, device)
        resumed = plan.checkpoint.tokens if plan.checkpoint else None
        self.album = FigureRecorder(plan.directory, components.tree, loggers, resumed) if self.rank == 0 else None
        self.loader = Loader(
            training_stream(components, self.rank, self.world_size),
            batch_sequences=run_config.sequences, micro_batch=engine.micro_batch,
            rank=self.rank, world_size=self.world_size, pin=device.type == "cuda",
        )  # fmt: skip
        self._held_out, loss_mask = validation_windows(components)
        self.validation = Validation(
            self._held_out, _padded(components.tokenizer.byte_lengths(), components.model.gpt.vocab_size),
            engine.micro_batch, device, loss_mask,
        )  # fmt: skip
        self.evaluating = Evaluating(engine, components, device)
        self._interval = ThroughputMeter(
            components, self.clock, micro_batch=engine.micro_batch, world_size=self.world_size, device=device
        )
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Train to the end, or until somebody asks to stop. Returns the summary."""
        try:
            outcome = self._run()
            self.loggers.close()
        except Exception as error:
            try:
                self.loggers.close()
            except Exception as another:  # noqa: BLE001 - a full disk fails a second time; the hook is called all the same
                error.add_note(f"the record of the run could not be closed either: {last_line(another)}")
            self.hooks.run_failed(self._info(), error)
            raise
        return self._finish(*outcome)

    def _run(self) -> tuple[str, Path | None, int, float]:
        """Status, the last checkpoint, tokens read and seconds taken."""
        if self.plan.checkpoint is not None:
            self._restore(self.plan.checkpoint)
        self.progress = Progress(self.clock.total_tokens, self.clock.tokens, self.rank == 0)
        started, began_at = time.monotonic(), self.clock.tokens
        interruption = StopSignal()
        saved: Path | None = self.plan.checkpoint.path if self.plan.checkpoint else None
        try:
            self.hooks.run_started(self._info())
            self._probe()
            if self.clock.step == 0:
                self._validate()
            status = "finished"
            self._interval.restart()
            while not self.clock.finished:
                self.step()
                saved = self._periodic() or saved
                if interruption.agreed() and not self.clock.finished:
                    status = "interrupted"
                    break
            if self.clock.tokens > began_at:
                saved = self._save()
                if self.clock.finished and self.run_config.cadence.evaluate_tokens:
                    self._evaluate()
        finally:
            interruption.restore()
            self.loader.close()
            self.progress.close()
        return status, saved, self.clock.tokens - began_at, time.monotonic() - started

    def _probe(self) -> None:
        """Check what plug-ins return on two held-out windows."""
        length = self.run_config.variant_length(0) if self.components.model.strategy.count else 0
        self.engine.wrapped.eval()
        probe_plugins(self.engine.step, self.engine, self._held_out[:2].to(self.device), length)
        self.engine.wrapped.train()

    def step(self) -> None:
        """One optimizer step: micro-batches forward and backward, then the update. Nothing is read back."""
        variants = self.components.model.strategy.count
        length = self.run_config.variant_length(self.clock.step) if variants else 0
        self.engine.step.begin_step(self.run_config.progress(self.clock.step))
        self._learning_rate = self.engine.learning_rate
        timed = self.timers.phase
        with self.timers.step():
            for _ in range(self.engine.accumulation):
                with timed("data"):
                    batch = next(self.loader)
                    tokens = batch.tokens.to(self.device, non_blocking=True)
                    indices = batch.indices.to(self.device, non_blocking=True)
                    loss_mask = None if batch.loss_mask is None else batch.loss_mask.to(self.device, non_blocking=True)
                    seeds = variant_seeds(self.run_config.seed, indices, variants)
                loss, statistics = self.engine(StepBatch(tokens, seeds, length, loss_mask))
                with timed("metrics"):
                    self.accumulator.add(statistics)
                self.engine.backward_and_step(loss)
            self.engine.step.after_step()
        self._loss = loss.detach()
        self.clock.tick()
        self.progress.update(self.clock.tokens)
        self.hooks.step_finished(self._info())

    # ---- what the token clock fires --------------------------------------------------------------
    def _periodic(self) -> Path | None:
        """Log, validate, evaluate, sample and save where due; the end of the run is due for all but sampling."""
        cadence, end = self.run_config.cadence, self.clock.finished
        periods = (
            cadence.log_tokens, cadence.eval_tokens, cadence.evaluate_tokens, cadence.sample_tokens,
            cadence.picture_tokens, cadence.checkpoint_tokens,
        )  # fmt: skip
        if not end and not any(map(self.clock.due, periods)):
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # queued steps belong to training, not to what follows
        if self.clock.due(cadence.log_tokens) or end:
            self._log()
        self._interval.pause()
        if self.clock.due(cadence.eval_tokens) or end:
            self._validate()
        if self.clock.due(cadence.sample_tokens):
            self._sample()
        if self.album is not None and cadence.picture_tokens and (self.clock.due(cadence.picture_tokens) or end):
            self.album.draw(self.clock.tokens)
        saved = self._save() if self.clock.due(cadence.checkpoint_tokens) and not end else None
        if self.clock.due(cadence.evaluate_tokens) and not end:
            self._evaluate()  # behind the checkpoint: what a stranger's evaluation does costs nothing
        self._interval.go_on()
        return saved

    def _log(self) -> None:
        self.accumulator.add(self.timers.collect() | memory(self.device))
        self.accumulator.add(self.weight_change.collect())
        if (norm := self.engine.gradient_norm) is not None:
            norm = norm.to(self.device, torch.float64)
            self.accumulator.add(StepMetrics(means={"train/grad_norm": torch.stack((norm, torch.ones_like(norm)))}))
        # Waits for the device, so that the stopwatch below measures finished work.
        reading = self.accumulator.read()
        metrics = reading.metrics
        metrics |= self._interval.metrics(lambda note: self.progress.message(Text(note, style="yellow")))
        metrics |= {
            "train/lr": self._learning_rate,
            "train/tokens": float(self.clock.tokens),
            "train/tokens_per_step": float(self.run_config.batch_tokens),
            "train/grad_accum_steps": float(self.engine.accumulation),
            "mc/grad_accum_steps": float(self.engine.accumulation),
        }
        self._check_finite(metrics["train/loss"])  # reduced over ranks, so all of them stop here together
        self._publish(metrics)
        self._keep(reading)
        self._interval.restart()

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} after {self.clock.tokens:,} tokens",
                remedy="lower optimizer.lr (and optimizer.muon_lr) or raise schedule.warm_up; the checkpoints that are "
                f"there are kept in {self.plan.directory / 'checkpoints'}",
            )

    def _validate(self) -> None:
        started = time.monotonic()
        metrics = self.validation.run(self.engine)
        metrics["train/validation_ms"] = 1000 * (time.monotonic() - started)
        if self.components.model.lensnet is not None:
            metrics |= self._show_contexts()
        self._publish(metrics)

    def _show_contexts(self) -> dict[str, float]:
        """Print the working contexts that LensNet and the allocator choose on held-out text, and a random one."""
        model, tree = self.engine.model, self.components.tree
        budget = self.run_config.context.target(min(1.0, self.clock.step / max(1, self.clock.total_steps - 1)))
        self.engine.wrapped.eval()
        chosen, random, rounds = watching.focuses(
            model,
            self.components.allocator,
            self._held_out[:FOCUSED],
            budget,
            self.run_config.seed,
            self.engine.micro_batch,
            self.device,
        )  # fmt: skip - every rank does this: at ZeRO 3 weights are gathered from all of them
        self.engine.wrapped.train()
        lines = [("focused ", row) for row in chosen[:SHOWN].tolist()] + [("random  ", random[0].tolist())]
        pictures = [Text(name).append_text(colored(row, tree)) for name, row in lines]
        for line in (key(tree), *pictures):
            self.progress.message(line)
        plain = [key(tree).plain, *(name + strip(row, tree) for name, row in lines)]
        self.loggers.text(self.clock.tokens, "working_contexts", "\n".join(plain))
        self._keep(Reading(counts={"mc/blocks/lens": blocks_by_lod(chosen, tree.levels).numpy()}))
        return {"mc/focus_iterations": rounds}

    def _evaluate(self) -> None:
        metrics: dict[str, float] = {}
        for name, findings in self.evaluating.run():
            metrics |= headlines(findings)
            if self.rank == 0:
                self.hooks.evaluated(self._info(), name, findings)
        self._publish(metrics)

    def _keep(self, reading: Reading) -> None:
        if self.album is not None:
            self.album.record(self.clock.tokens, self.clock.step, reading)

    def _sample(self) -> None:
        self.engine.wrapped.eval()
        made = watching.continuations(
            self.engine.model, self.components.tokenizer, self.run_config.sampling, self.device, self.clock.tokens
        )
        self.engine.wrapped.train()
        for prompt, continuation in made:
            self.progress.message(Text(prompt, style="bold") + Text(continuation, style="not bold"))
        self.loggers.text(self.clock.tokens, "samples", "\n\n".join(prompt + text for prompt, text in made))

    def _publish(self, metrics: Mapping[str, float]) -> None:
        self.first = {**metrics, **self.first}
        self.last |= metrics
        self.loggers.write(self.clock.tokens, self.clock.step, metrics)
        self.progress.line(metrics, self.clock.tokens)
        if self.rank == 0:
            self.hooks.metrics_logged(self._info(), metrics)

    # ---- checkpoints -----------------------------------------------------------------------------
    def _save(self) -> Path:
        started = time.monotonic()
        loss = self._loss.double()
        dist.all_reduce(loss)  # not finite on one rank, not finite on all: never over a good checkpoint
        self._check_finite(float(loss) / self.world_size)
        states: list[Any] = [None] * self.world_size
        dist.all_gather_object(states, self.loader.state())
        shared = {
            "step": self.clock.step, "loader": self.loader.merge(states), "first": self.first, "last": self.last,
        }  # fmt: skip
        self.accumulator.add(self.timers.collect())
        own = {
            "accumulator": self.accumulator.state(), "weights": self.weight_change.state(),
        }  # fmt: skip
        path = checkpoints.save(
            self.engine, self.plan.directory, self._clock_settings(), shared, own, self.run_config.cadence.keep
        )
        self.hooks.checkpoint_saved(self._info(), path)
        # Behind what it saves: a run that goes on from here goes on from the last interval's figures.
        self.loggers.write(
            self.clock.tokens, self.clock.step, {"train/checkpoint_ms": 1000 * (time.monotonic() - started)}
        )
        return path

    def _clock_settings(self) -> dict[str, int]:
        """The clock's reading and what it depends on; names as in gin."""
        return {
            "tokens": self.clock.tokens,
            "run.batch_tokens": self.run_config.batch_tokens,
            "context.window": self.run_config.context.window,
            "run.seed": self.run_config.seed,
        }

    def _restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        shared, own = checkpoints.load(self.engine, checkpoint, self._clock_settings())
        self.engine.apply_schedule()
        if self.rank == 0:
            checkpoints.set_aside(self.plan.directory, checkpoint.tokens)
        self.clock.step = shared["step"]
        self.first, self.last = shared["first"], shared["last"]
        self.loader.restore(shared["loader"])
        self.accumulator.restore(own["accumulator"])
        self.weight_change.restore(own.get("weights"))
        self.hooks.checkpoint_loaded(self._info(), checkpoint.path)

    # ---- the end ---------------------------------------------------------------------------------
    def _finish(self, status: str, saved: Path | None, tokens: int, seconds: float) -> dict[str, Any]:
        places: dict[str, str | Path] = {}
        if saved is not None:
            places["checkpoint"] = saved
        places |= self.loggers.locations
        if self.album is not None:
            places |= self.album.locations
        places["operative config"] = self.plan.directory / OPERATIVE
        summary = summarise(
            status=status, tokens=self.clock.tokens, steps=self.clock.step, session_tokens=tokens,
            session_seconds=seconds, first=self.first, last=self.last, locations=places,
        )  # fmt: skip
        if self.rank == 0:
            write_summary(self.plan.directory, summary)
            self.progress.message(summary_table(summary))
            self.hooks.run_finished(self._info(), summary)
        return summary

    def _info(self) -> RunInfo:
        return RunInfo(
            directory=self.plan.directory, rank=self.rank, world_size=self.world_size,
            tokens=self.clock.tokens, step=self.clock.step, total_tokens=self.clock.total_tokens,
        )  # fmt: skip


def _padded(byte_lengths: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Byte lengths for a model whose vocabulary is larger than the tokenizer's."""
    return torch.nn.functional.pad(byte_lengths, (0, vocab_size - byte_lengths.shape[0]))
