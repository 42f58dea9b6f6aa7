"""Everything that a run reports: metrics, texts, figures, the console and the hooks of plug-ins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.text import Text

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import EvalResult, RunInfo
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.figure_recorder import FigureRecorder
from mcframe.metrics.loggers import Loggers
from mcframe.metrics.progress import Progress
from mcframe.metrics.summary import summarise, summary_table, write_summary
from mcframe.registry.plugins import Lifecycle
from mcframe.training.callbacks.plugins import PluginCallbacks
from mcframe.training.run_directory import OPERATIVE, RunPlan
from mcframe.training.train_state import TrainState


class Recorder:
    """The reports of a run.

    Args:
        plan: Where the run writes, and the checkpoint that it resumes from.
        tree: The context tree.
        state: Steps and tokens so far.
        loggers: Loggers; none on ranks other than 0.
        hooks: Lifecycle hooks of plug-ins.
        callbacks: Callbacks of plug-ins.

    Attributes:
        first: The first value of every metric, over all sessions of the run.
        last: The last value of every metric.
    """

    def __init__(
        self,
        plan: RunPlan,
        tree: ContextTree,
        state: TrainState,
        loggers: Loggers,
        hooks: Lifecycle,
        callbacks: PluginCallbacks,
    ) -> None:
        self._plan, self._tree, self._state, self.loggers, self.hooks = plan, tree, state, loggers, hooks
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        resumed = plan.checkpoint.tokens if plan.checkpoint else None
        self._figures = FigureRecorder(plan.directory, tree, loggers, resumed) if self._rank == 0 else None
        self._callbacks = callbacks
        self.progress = Progress(state.total_tokens, resumed or 0, enabled=False)
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def start(self) -> None:
        """Start a session, and its progress bar."""
        self._started, self._first_tokens = time.monotonic(), self._state.tokens
        self.progress = Progress(self._state.total_tokens, self._state.tokens, self._rank == 0)

    def rewind(self, tokens: int) -> None:
        """Supersede what was reported after this token count: the run is back there."""
        self.loggers.rewind(tokens)
        if self._figures is not None:
            self._figures = FigureRecorder(self._plan.directory, self._tree, self.loggers, tokens)

    def info(self) -> RunInfo:
        """Return the run as lifecycle hooks see it."""
        state = self._state
        return RunInfo(
            self._plan.directory, self._rank, self._world_size, state.tokens, state.step, state.total_tokens
        )  # fmt: skip

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Write metrics to loggers and console, and pass them to the hooks of plug-ins."""
        self.first = {**metrics, **self.first}
        self.last |= metrics
        self.write(metrics)
        self.progress.line(metrics, self._state.tokens)
        if self._rank == 0:
            self.hooks.metrics_logged(self.info(), metrics)
        self._callbacks.on_metrics(self._state.tokens, metrics)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Write metrics to the loggers alone."""
        self.loggers.write(self._state.tokens, self._state.step, metrics)

    def warn(self, warning: str) -> None:
        """Print a warning on rank 0."""
        self.progress.message(Text(f"warning: {warning}", style="yellow"))

    def text(self, name: str, text: str) -> None:
        """Write a text to the loggers."""
        self.loggers.text(self._state.tokens, name, text)

    def record(self, reading: Reading) -> None:
        """Record the data of figures."""
        if self._figures is not None:
            self._figures.record(self._state.tokens, self._state.step, reading)

    def draw(self) -> None:
        """Draw the figures."""
        if self._figures is not None:
            self._figures.draw(self._state.tokens)

    def evaluated(self, name: str, result: EvalResult) -> None:
        """Pass the result of an evaluation to the hooks of plug-ins."""
        if self._rank == 0:
            self.hooks.evaluated(self.info(), name, result)

    def finish(self, status: str, checkpoint: Path | None) -> dict[str, Any]:
        """Write, print and return the summary of the run.

        Args:
            status: `finished`, `interrupted`, or `stopped` by a callback.
            checkpoint: The newest checkpoint.
        """
        locations: dict[str, str | Path] = {"checkpoint": checkpoint} if checkpoint is not None else {}
        locations |= self.loggers.locations
        if self._figures is not None:
            locations |= self._figures.locations
        locations["operative config"] = self._plan.directory / OPERATIVE
        summary = summarise(
            status=status, tokens=self._state.tokens, steps=self._state.step,
            session_tokens=self._state.tokens - self._first_tokens, session_seconds=time.monotonic() - self._started,
            first=self.first, last=self.last, locations=locations,
        )  # fmt: skip
        if self._rank == 0:
            write_summary(self._plan.directory, summary)
            self.progress.message(summary_table(summary))
            self.hooks.run_finished(self.info(), summary)
        return summary
