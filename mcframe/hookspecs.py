"""The plug-in API: every hook, and every interface that a plug-in implements. All of it is imported from here.

A plug-in is a module or an object with functions marked `@hookimpl`, published under the entry-point group
`mcframe.plugins`. The hook `register_plugins` receives `register(name, factory)`; what is registered becomes a gin
configurable in a module named after the kind, so that

    run.gistnet = @gistnet.NAME
    gistnet.NAME.layers = 4

selects and parameterises it. A factory is called with the positional arguments that its interface names and with
the values that gin binds to its keyword parameters.

kind         interface          defined in                 sees
gistnet      GistNet            interfaces/networks.py     the children of every node of a level
lensnet      LensNet            interfaces/networks.py     the entries before the cursor
positions    Positions          interfaces/networks.py     positions of the entries
allocator    Allocator          interfaces/focus.py        scores and a budget
variants     VariantStrategy    interfaces/focus.py        tokens and seeds
text         TextSource         interfaces/data.py         its own input
tokenizer    Tokenizer          interfaces/data.py         texts
task         Task               interfaces/data.py         seeds
loss         Loss               interfaces/loss.py         a micro-batch within the training step
evaluation   Evaluation         interfaces/evaluation.py   a trained model
logger       MetricLogger       interfaces/logger.py       metrics, texts and figures
callback     Callback           interfaces/callback.py     model, losses and metrics, after backward and after a step
optimizer    Optimizer          interfaces/optimizer.py    parameter groups
schedule     Schedule           interfaces/schedule.py     the number of a step

Shapes: B sequences, V variants of each, R = B * V rows (row r belongs to sequence r // V), T tokens, K block size,
G slots, D width, L entries of a working context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pluggy

from mcframe.context.preference_pairs import PreferencePairs
from mcframe.context.step_metrics import StepMetrics
from mcframe.interfaces.attention import causal_attention, causal_mask, document_mask, rotate
from mcframe.interfaces.base_model import BaseModel, BaseShape
from mcframe.interfaces.callback import Callback, CallbackRun, CallbackStep, StopRun
from mcframe.interfaces.data import Chat, Message, SyntheticBatch, SyntheticTask, TextSource, Tokenizer
from mcframe.interfaces.eval_result import Chart, EvalResult, Interval, Table
from mcframe.interfaces.evaluation import EvalData, EvalModel, Evaluation
from mcframe.interfaces.focus import Allocator, Sequences, VariantStrategy
from mcframe.interfaces.kv_cache import KVCache
from mcframe.interfaces.logger import Histogram, MetricLogger, RunStart
from mcframe.interfaces.loss import LensPass, Loss, LossTerm, Need, StepView, UncompressedPass, VariantPass
from mcframe.interfaces.networks import GistNet, HeadShape, LensNet, ModelShape, Positions
from mcframe.interfaces.optimizer import Optimizer, UpdateRule
from mcframe.interfaces.param_groups import ParamGroup, Role, TrainableModule, group_parameters
from mcframe.interfaces.schedule import Schedule
from mcframe.renamed import renamed_export

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "INTERFACES",
    "PROJECT",
    "Allocator",
    "BaseModel",
    "BaseShape",
    "Callback",
    "CallbackRun",
    "CallbackStep",
    "Chart",
    "Chat",
    "EvalData",
    "EvalModel",
    "EvalResult",
    "Evaluation",
    "GistNet",
    "HeadShape",
    "Histogram",
    "Hooks",
    "Interval",
    "KVCache",
    "LensNet",
    "LensPass",
    "Loss",
    "LossTerm",
    "Message",
    "MetricLogger",
    "ModelShape",
    "Need",
    "Optimizer",
    "ParamGroup",
    "Positions",
    "PreferencePairs",
    "Register",
    "Role",
    "RunInfo",
    "RunStart",
    "Schedule",
    "Sequences",
    "StepMetrics",
    "StepView",
    "StopRun",
    "SyntheticBatch",
    "SyntheticTask",
    "Table",
    "TextSource",
    "Tokenizer",
    "TrainableModule",
    "UncompressedPass",
    "UpdateRule",
    "VariantPass",
    "VariantStrategy",
    "causal_attention",
    "causal_mask",
    "document_mask",
    "group_parameters",
    "hookimpl",
    "rotate",
]  # fmt: skip

API_VERSION = "0.1"
PROJECT = "mcframe"
ENTRY_POINT_GROUP = "mcframe.plugins"

INTERFACES: Mapping[str, type] = {
    "base": BaseModel,
    "gistnet": GistNet,
    "lensnet": LensNet,
    "allocator": Allocator,
    "variants": VariantStrategy,
    "positions": Positions,
    "text": TextSource,
    "tokenizer": Tokenizer,
    "task": SyntheticTask,
    "loss": Loss,
    "evaluation": Evaluation,
    "logger": MetricLogger,
    "callback": Callback,
    "optimizer": Optimizer,
    "schedule": Schedule,
}
"""The class of each kind: a factory returns an instance of it."""


def __getattr__(name: str) -> Any:
    raise renamed_export(__name__, name)


hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# ---- the run, as lifecycle hooks see it ----------------------------------------------------------
@dataclass(frozen=True)
class RunInfo:
    """A run: its directory, rank, world size, tokens and steps so far, and `run.hooks`: settings by plug-in."""

    directory: Path
    rank: int
    world_size: int
    tokens: int
    step: int
    total_tokens: int
    hooks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Register(Protocol):
    """The argument of `register_plugins`, called once for each implementation."""

    def __call__(self, name: str, factory: Callable[..., Any], /, *, kind: str | None = None) -> None:
        """Register `factory` under `name`.

        Args:
            name: Letters, digits and underscores; gin files write `@KIND.NAME`.
            factory: A class that derives from an interface, or a function annotated to return one.
            kind: The kind, where it cannot be inferred from the factory.
        """


class Hooks:
    """Hook specifications, in the order of a run's life. Implement any of them with `@hookimpl`.

    Parameters may be omitted, not renamed. Hooks return None. An error that a hook raises while training is one warning
    that names the plug-in, whose hooks are off until the run is started again; StopRun ends the run after its step. An
    error of `register_plugins` marks the plug-in as broken.

    What hooks report comes after the checkpoint of its step. A run that is killed in between reports it when it is
    resumed, so that a hook may be called twice for one step.

    Every command calls `register_plugins`, once a plug-in. A run calls the others, on the ranks shown:

        checkpoint_loaded             every rank, when a run resumes
        run_started                   every rank
          metrics_logged              rank 0: validation before the first step of a new run
          checkpoint_saved            every rank, when due; steps later with checkpoint.asynchronous
          step_finished               every rank, each step; then, when due:
            metrics_logged            rank 0: a logging interval; then validation
            evaluated                 rank 0, each evaluation; then metrics_logged with their headlines
        run_finished | run_failed     rank 0 | every rank that met the error
    """

    @hookspec
    def register_plugins(self, register: Register) -> None:
        """Register implementations, each under a name for gin files.

        The kind follows from the base class of what is registered, or from the return annotation of a factory function.

        ```python
        @hookimpl
        def register_plugins(register):
            register("last", Last)
            register("raw", Raw)
        ```
        """

    @hookspec
    def checkpoint_loaded(self, run: RunInfo, checkpoint: Path) -> None:
        """The run resumes from this checkpoint: weights, optimizer and data position are restored. Every rank.

        Called before `run_started`. Commands that open a checkpoint for reading (eval, sample, export) do not call it.

        ```python
        @hookimpl
        def checkpoint_loaded(run, checkpoint):
            note = json.loads((run.directory / "notes" / f"{checkpoint.name}-{run.rank}.json").read_text())
        ```
        """

    @hookspec
    def run_started(self, run: RunInfo) -> None:
        """The engine is built and, in a resumed run, loaded; the first step comes next. Every rank.

        `config.gin` and `provenance.json` are written after that step.

        ```python
        @hookimpl
        def run_started(run):
            print(f"{run.total_tokens - run.tokens:,} tokens to go")
        ```
        """

    @hookspec
    def step_finished(self, run: RunInfo) -> None:
        """An optimizer step is done. Every rank, in the hot path: read no tensor here.

        ```python
        @hookimpl
        def step_finished(run):
            beat.touch()
        ```
        """

    @hookspec
    def metrics_logged(self, run: RunInfo, metrics: Mapping[str, float]) -> None:
        """A logging interval, a validation or evaluations have been read back. Rank 0 only.

        metrics maps names of docs/metrics.md to figures that are reduced over ranks.

        ```python
        @hookimpl
        def metrics_logged(run, metrics):
            if "val/loss" in metrics:
                send(run.tokens, metrics["val/loss"])
        ```
        """

    @hookspec
    def checkpoint_saved(self, run: RunInfo, checkpoint: Path) -> None:
        """A checkpoint is complete in the folder `checkpoint`, and `run` is the run when it was taken. Every rank.

        Write no file into the folder: a checkpoint with a foreign file counts as damaged. With checkpoint.asynchronous
        the call comes some steps after the state was taken.

        ```python
        @hookimpl
        def checkpoint_saved(run, checkpoint):
            if run.rank == 0:
                upload(checkpoint)
        ```
        """

    @hookspec
    def evaluated(self, run: RunInfo, name: str, result: EvalResult) -> None:
        """The evaluation `name` has finished, while training or in `mcframe eval`. Rank 0 only.

        While training it comes before `metrics_logged` with the headlines; in `mcframe eval` nothing else is called,
        and `run` is that of the checkpoint.

        ```python
        @hookimpl
        def evaluated(run, name, result):
            for sentence in result.conclusions:
                post(name, sentence)
        ```
        """

    @hookspec
    def run_finished(self, run: RunInfo, summary: Mapping[str, Any]) -> None:
        """The run has ended well, finished or interrupted. Rank 0 only.

        summary is the content of summary.json: `status`, `tokens`, `steps`, `first`, `last`, `locations` and more.

        ```python
        @hookimpl
        def run_finished(run, summary):
            mail(summary["status"], summary["last"]["val/loss"])
        ```
        """

    @hookspec
    def run_failed(self, run: RunInfo, error: Exception) -> None:
        """The run ends by this error; metrics and checkpoints so far are written and closed. Every rank that met it.

        Called in place of `run_finished`, and only where training had begun. The error is raised again
        afterwards; an error of this hook becomes a note to it.

        ```python
        @hookimpl
        def run_failed(run, error):
            page(f"rank {run.rank} at {run.tokens:,} tokens: {error}")
        ```
        """
