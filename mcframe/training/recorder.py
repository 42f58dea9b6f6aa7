"""Everything that a run reports: metrics, texts, figures, the console and the hooks of plug-ins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.text import Text

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import EvalResult, RunInfo
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.figure_recorder import FigureRecorder
from mcframe.metrics.jsonl_logger import METRICS, TEXTS, rows_from
from mcframe.metrics.loggers import Loggers
from mcframe.metrics.progress import Progress
from mcframe.metrics.summary import is_reported, summarise, summary_table, write_summary
from mcframe.registry.lifecycle import Lifecycle
from mcframe.training.callbacks.plugins import PluginCallbacks
from mcframe.training.random_states import unchanged_random_states
from mcframe.training.run_directory import OPERATIVE, RunPlan
from mcframe.training.train_state import TrainState


class Recorder:
    """The reports of a run. Until `begin` nothing is written to the run directory: reports are held back.

    Args:
        plan: Where the run writes, and the checkpoint that it resumes from.
        tree: The context tree.
        state: Steps and tokens so far.
        record_start: Writes what describes the run, and returns its loggers; none on ranks other than 0.
        hooks: Lifecycle hooks of plug-ins.
        callbacks: Callbacks of plug-ins.

    Attributes:
        first: The first value of every metric, over all sessions of the run.
        last: The last value of every metric.
        warnings: The different warnings of this session, in order.
        unshown: Metrics published since the last call of `show`.
    """

    def __init__(
        self,
        plan: RunPlan,
        tree: ContextTree,
        state: TrainState,
        record_start: Callable[[], Loggers],
        hooks: Lifecycle,
        callbacks: PluginCallbacks,
    ) -> None:
        self._plan, self._tree, self._state, self.hooks = plan, tree, state, hooks
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._record_start, self._callbacks = record_start, callbacks
        self._held: list[Callable[[], None]] | None = []
        self.loggers = Loggers({})
        self._figures: FigureRecorder | None = None
        self._resumed = plan.checkpoint.tokens if plan.checkpoint else None
        self.progress = Progress(state.total_tokens, self._resumed or 0, enabled=False)
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.warnings: dict[str, None] = {}
        self.unshown: list[dict[str, float]] = []
        self.shown = (0, frozenset[str]())
        self._unlogged: list[Reading] = []
        self._reported: frozenset[str] = frozenset()

    def start(self) -> None:
        """Start a session, and its progress bar."""
        self._started, self._first_tokens = time.monotonic(), self._state.tokens
        self.progress = Progress(self._state.total_tokens, self._state.tokens, self._rank == 0)
        if self._plan.checkpoint is not None and self._rank == 0:
            directory, tokens = self._plan.directory, self._first_tokens
            rows = [row for name in (METRICS, TEXTS) for row in rows_from(directory / name, tokens)]
            self._reported = frozenset(name for row in rows if row["tokens"] == tokens for name in _names(row))

    def replay(self, before: Collection[str]) -> bool:
        """Pass on what an earlier session has reported after the checkpoint, and return whether that was all.

        Callbacks of plug-ins and the summary become what they are in an uninterrupted run. Collective.

        Args:
            before: Names of metrics that were reported before the checkpoint: callbacks have received them.
        """
        found: list[list[dict[str, Any]] | None] = [None]
        if self._rank == 0:
            directory, tokens = self._plan.directory, self._state.tokens
            rows = rows_from(directory / METRICS, tokens)
            if is_reported(directory, tokens) or any(row["tokens"] > tokens for row in rows):
                found = [[row for row in rows if row["tokens"] == tokens]]
        dist.broadcast_object_list(found)
        if found[0] is None:
            return False
        for row in found[0]:
            metrics = {name: math.nan if row[name] is None else row[name] for name in _names(row)}
            if not all(name.startswith("train/checkpoint") for name in metrics):  # which no callback receives
                self.first = {**metrics, **self.first}
                self.last |= metrics
                if not metrics.keys() <= set(before):
                    self._callbacks.on_metrics(self._state.tokens, metrics)
        self.unshown = []
        return True

    def rewind(self) -> None:
        """Supersede what was reported after the present token count: the run has returned to a checkpoint."""
        self.unshown, self._unlogged, self._resumed = [], [], self._state.tokens  # of its step, which has been shown
        self.loggers = self.loggers.rewind(self._resumed)
        if self._figures is not None:
            self._figures = FigureRecorder(self._plan.directory, self._tree, self.loggers, self._resumed)

    @property
    def begun(self) -> bool:
        """True once the run writes to its directory."""
        return self._held is None

    def begin(self) -> None:
        """Write what describes the run, open its loggers, and write the reports held back so far."""
        assert self._held is not None
        with unchanged_random_states():  # what a logger draws must not change the run
            self.loggers = self._record_start()
        if self._rank == 0:
            self._figures = FigureRecorder(self._plan.directory, self._tree, self.loggers, self._resumed)
        held, self._held = self._held, None
        for report in held:
            report()

    def _when_begun(self, report: Callable[[], None]) -> None:
        if self._held is None:
            report()
        else:
            self._held.append(report)

    def info(self) -> RunInfo:
        """Return the run as lifecycle hooks see it."""
        state = self._state
        return RunInfo(
            self._plan.directory, self._rank, self._world_size, state.tokens, state.step, state.total_tokens
        )  # fmt: skip

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Record metrics, for `show`."""
        self.first = {**metrics, **self.first}
        self.last |= metrics
        self.unshown.append(dict(metrics))

    def show(self) -> None:
        """Write the metrics published so far to loggers and console, and pass them to hooks and callbacks.

        Called after the checkpoint of their step, which holds them in case that the run is killed before.
        """
        unshown, self.unshown = self.unshown, []
        tokens, names = self.shown if self.shown[0] == self._state.tokens else (self._state.tokens, frozenset[str]())
        self.shown = tokens, names.union(*unshown)
        for metrics in unshown:
            self.write(metrics)
            self.progress.line(metrics, self._state.tokens)
            if self._rank == 0:
                self.hooks.metrics_logged(self.info(), metrics)
            self._callbacks.on_metrics(self._state.tokens, metrics)
        if self._unlogged:
            unlogged, self._unlogged = self._unlogged, []
            self._when_begun(lambda: self._log_histograms(tokens, unlogged))

    def _log_histograms(self, tokens: int, readings: Sequence[Reading]) -> None:
        for reading in readings:
            if self._figures is not None:
                self._figures.log(tokens, reading)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Write metrics to the loggers alone, except those written before the run was resumed at this token count."""
        tokens, step, written = self._state.tokens, self._state.step, dict(metrics)
        if self._reported and tokens == self._first_tokens:
            written = {name: value for name, value in metrics.items() if name not in self._reported}
        if written:
            self._when_begun(lambda: self.loggers.write(tokens, step, written))

    def warn(self, warning: str) -> None:
        """Print a warning on rank 0, now and at the end of the run."""
        self.warnings[warning] = None
        self.progress.message(Text(f"warning: {warning}", style="yellow"))

    def text(self, name: str, text: str) -> None:
        """Write a text to the loggers, unless it was written before the run was resumed at this token count."""
        tokens = self._state.tokens
        if name not in self._reported or tokens != self._first_tokens:
            self._when_begun(lambda: self.loggers.text(tokens, name, text))

    def record(self, reading: Reading) -> None:
        """Record the data of figures; `show` logs its histograms."""
        tokens, step = self._state.tokens, self._state.step
        self._unlogged.append(reading)

        def report() -> None:
            if self._figures is not None:
                self._figures.record(tokens, step, reading)

        self._when_begun(report)

    def draw(self) -> None:
        """Draw the figures."""
        tokens = self._state.tokens

        def report() -> None:
            if self._figures is not None:
                self._figures.draw(tokens)

        self._when_begun(report)

    def evaluated(self, name: str, result: EvalResult) -> None:
        """Pass the result of an evaluation to the hooks of plug-ins."""
        if self._rank == 0:
            self.hooks.evaluated(self.info(), name, result)

    def finish(self, status: str, checkpoint: Path | None) -> dict[str, Any]:
        """Write, print and return the summary of the run. Collective.

        Args:
            status: `finished`, `interrupted`, or `stopped` by a callback.
            checkpoint: The newest checkpoint.
        """
        warnings = self._warnings_of_all_ranks()
        locations: dict[str, str | Path] = {"checkpoint": checkpoint} if checkpoint is not None else {}
        locations |= self.loggers.locations
        if self._figures is not None:
            locations |= self._figures.locations
        locations["operative config"] = self._plan.directory / OPERATIVE
        summary = summarise(
            status=status, tokens=self._state.tokens, steps=self._state.step,
            session_tokens=self._state.tokens - self._first_tokens, session_seconds=time.monotonic() - self._started,
            first=self.first, last=self.last, locations=locations, warnings=warnings,
        )  # fmt: skip
        if self._rank == 0:
            write_summary(self._plan.directory, summary)
            self.progress.message(summary_table(summary))
            for warning in warnings:
                self.progress.message(Text(f"warning of this run: {warning}", style="yellow"))
            self.hooks.run_finished(self.info(), summary)
        return summary

    def _warnings_of_all_ranks(self) -> list[str]:
        """Return the different warnings of this session. Collective."""
        found: list[list[str]] = [list(self.warnings)] * self._world_size
        if self._world_size > 1:
            dist.all_gather_object(found, list(self.warnings))
        return list(dict.fromkeys(warning for each in found for warning in each))


def _names(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics in a line, or that of its text."""
    return [row["name"]] if "text" in row else [name for name in row if name not in ("tokens", "step", "time")]
