"""The training step, compiled by torch.compile as one graph for each length of variants.

At ZeRO 3, DeepSpeed gathers the weights in hooks around each module, which torch.compile cannot trace. Modules that are
marked as leaves, and gathered at once, fail in DeepSpeed's backward pass if a step calls them twice.
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcframe.config.schema import GRAPHS, RunConfig
from mcframe.context.step_metrics import StepMetrics
from mcframe.errors import Location, UserError
from mcframe.training.compiler import check_inductor
from mcframe.training.train_step import StepBatch, TrainStep

DECLARED_METRICS = {
    "train/compile_s": ("s", "lower", "forward passes of this start that compiled, in all; with run.compile"),
    "train/compiled_graphs": ("graphs", "lower", "forward passes of this start that compiled; with run.compile"),
}

_log = logging.getLogger(__name__)
_TORCH = str(Path(torch.__file__).parent)
_LIMIT = 2 * GRAPHS
"""Graphs after which further ones are not compiled."""
_LOOKS = 1000
"""Steps whose lengths the start-up summary looks at."""


class CompiledStep:
    """Compiles a step in training mode, and counts its graphs.

    Args:
        setting: `run.compile`, not False.

    Raises:
        UserError: A compiler is missing.

    Attributes:
        seconds: Seconds of the forward passes that compiled.
        graphs: Number of these passes.
    """

    def __init__(self, setting: bool | str) -> None:
        check_inductor(setting)
        # They are functions of their arguments, and marked as constants.
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`-wrapped function")
        torch.compiler.reset()  # graphs of an earlier run in this process would count
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _LIMIT)
        # One of mcframe's options of torch.compile is a backend, the others are modes.
        how = {"backend": setting} if setting == "eager" else {"mode": setting if isinstance(setting, str) else None}
        self._compute = torch.compile(TrainStep.compute, fullgraph=True, dynamic=False, **how)
        self.seconds, self.graphs, self._off = 0.0, 0, False
        self._notes: list[tuple[float, str]] = []

    def __call__(self, step: TrainStep, batch: StepBatch) -> tuple[Tensor, StepMetrics]:
        """Return loss and metrics of a micro-batch. Anomaly mode, which looks into single operations, is not compiled.

        Raises:
            UserError: The step cannot be compiled.
        """
        if self._off or torch.is_anomaly_enabled():
            return step.compute(batch)
        before, started = _graphs(), time.monotonic()
        try:
            with torch.compiler.set_stance("default"), _backward_in_forward():
                loss, metrics = self._compute(step, batch)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self._off = True
            _log.warning("run.compile: the rest of the run is not compiled, after %d graphs", self.graphs)
            return step.compute(batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise not_compiled(error) from error
        if _graphs() != before:
            self._count(batch, time.monotonic() - started)
        return loss, metrics

    def _count(self, batch: StepBatch, seconds: float) -> None:
        self.seconds, self.graphs = self.seconds + seconds, self.graphs + 1
        what = f"variants of {batch.length:,} entries" if batch.length else "a step without variants"
        self._notes.append((seconds, f"compiled for {what} in {seconds:.1f} s"))
        if self.graphs == GRAPHS + 1:
            _log.warning(
                "run.compile: the step has been compiled %d times, in %.0f s. Set context.length_steps = %d or lower; "
                "with no more lengths than that, a number in a plug-in changes from step to step, which "
                "TORCH_LOGS=recompiles names",
                self.graphs, self.seconds, GRAPHS,
            )  # fmt: skip

    def notes(self) -> list[tuple[float, str]]:
        """Return what has been compiled since the last call: seconds, and a text for the user."""
        notes, self._notes = self._notes, []
        return notes

    def metrics(self) -> dict[str, float]:
        """Return the seconds and the number of passes that compiled."""
        return {"train/compile_s": self.seconds, "train/compiled_graphs": float(self.graphs)}


def describe_compile(run_config: RunConfig, count: int) -> str:
    """Return what a run compiles, as text for the start-up summary; `count` is the number of variants of a sequence."""
    what = "the step"
    if count:
        some = range(0, run_config.steps, max(1, run_config.steps // _LOOKS))
        found = {*map(run_config.variant_length, some), *run_config.extreme_lengths}
        what += f" for variants of {', '.join(f'{length:,}' for length in sorted(found, reverse=True))} entries"
    return f"{what}; each takes up to minutes when it first occurs"


def not_compiled(error: Exception) -> UserError:
    """Return the message for an error of torch.compile, with the line that could not be traced if there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = [each for each in getattr(error, "real_stack", ()) if not each.filename.startswith(_TORCH)]
    return UserError(
        f"run.compile: torch.compile failed: {lines[0] if lines else type(error).__name__}",
        remedy="Correct the line that it names, or set run.compile = False. --traceback prints the traceback.",
        location=Location(frames[-1].filename, frames[-1].lineno) if frames else None,
        binding="" if frames else "run.compile",
    )


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _backward_in_forward() -> AbstractContextManager[Any]:
    """Compile the backward graph together with the forward, where its time and its errors are noticed."""
    settings: Any = torch._functorch.config
    name = "force_non_lazy_backward_lowering"
    return settings.patch({name: True}) if hasattr(settings, name) else nullcontext()
