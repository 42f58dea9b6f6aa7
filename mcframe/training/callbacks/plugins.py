"""The callbacks of `run.callbacks`: calls, their metrics, requests to stop, and errors that must not end a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.step_metrics import StepMetrics
from mcframe.errors import UserError, require
from mcframe.hookspecs import Allocator, Callback, CallbackRun, CallbackStep, RunInfo, Tokenizer
from mcframe.metrics.accumulator import Accumulator
from mcframe.training.state_files import encode
from mcframe.training.stop_signal import StopSignal
from mcframe.training.train_step import TrainStep
from mcframe.training.watchers import Watchers

DECLARED_METRICS = {"callback/{callback}/{figure}": ("its own", "neither", "a value that this callback reports")}


class PluginCallbacks:
    """The callbacks of a run, in order.

    Args:
        callbacks: The callbacks.
        config: Every binding of the run by its gin name.
        explain: Returns an error of a third-party plug-in as a message that names it.

    Attributes:
        watchers: All that only watches the run; the trainer adds its own.

    Raises:
        UserError: Two callbacks have one name.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback] = (),
        config: Mapping[str, Any] | None = None,
        explain: Callable[[Exception], UserError | None] = lambda error: None,
    ) -> None:
        names = [callback.name for callback in callbacks]
        require(
            len(set(names)) == len(names), "run.callbacks", names, "callbacks with different names",
            "Remove one of the callbacks with equal names.",
        )  # fmt: skip
        self._config, self.watchers = config or {}, Watchers(explain)
        self._callbacks = {callback.name: callback for callback in callbacks}
        self.watchers.declare(*map(_subject, self._callbacks), every_step=True)
        self._sums: dict[str, Tensor] = {}
        self._pending: list[tuple[str, StepMetrics]] = []

    def start(
        self,
        step: TrainStep,
        info: RunInfo,
        tokenizer: Tokenizer | None = None,
        allocator: Callable[[ContextTree], Allocator] | None = None,
    ) -> None:
        """Announce the run.

        Args:
            step: The module that is trained.
            info: The run as lifecycle hooks see it.
            tokenizer: The tokenizer.
            allocator: Makes the run's allocator for a tree.
        """
        losses = {loss.name: loss for loss in step.losses.each()}
        run = CallbackRun(
            step.model, losses, self._config, info.directory, info.rank, info.world_size, info.total_tokens,
            tokenizer, allocator,
        )  # fmt: skip
        self._each(lambda callback: callback.on_start(run))

    def begin_step(self) -> None:
        """Forget the losses of the step before."""
        self._sums = {}

    def add(self, metrics: StepMetrics) -> None:
        """Add the losses of a micro-batch. Does not synchronise with the host."""
        if not self._callbacks:
            return
        for name, value in metrics.means.items():
            if name == "train/loss" or (name.startswith("loss/") and name.count("/") == 1):
                held = self._sums.get(name)
                self._sums[name] = value.detach() if held is None else held + value.detach()

    def after_backward(self, step: int, tokens: int) -> None:
        """Call `after_backward` of every callback."""
        self._report(lambda callback, view: callback.after_backward(view), step, tokens)

    def after_step(self, step: int, tokens: int) -> None:
        """Call `after_step` of every callback."""
        self._report(lambda callback, view: callback.after_step(view), step, tokens)

    def settle(self, accumulator: Accumulator, stop_signal: StopSignal) -> None:
        """Remove callbacks that failed on any rank, and accumulate the metrics of the others. Collective."""
        if not self.watchers.every_step:
            return
        self.watchers.agree(stop_signal)
        for name in [name for name in self._callbacks if self.watchers.is_off(_subject(name))]:
            del self._callbacks[name]
        for name, metrics in self._pending:
            if name in self._callbacks:
                accumulator.add(metrics)
        self._pending = []

    def on_metrics(self, tokens: int, metrics: Mapping[str, float]) -> None:
        """Pass logged metrics to every callback, each time as a copy."""
        self._each(lambda callback: callback.on_metrics(tokens, dict(metrics)))

    def stop_requested(self, stop_signal: StopSignal) -> bool:
        """Return whether a callback or a hook requested a stop on any rank. Collective."""
        return self.watchers.every_step and stop_signal.any_rank([bool(self.stop_reasons)])[0]

    @property
    def stop_reasons(self) -> list[str]:
        """The reasons of the callbacks and hooks of this rank that requested a stop."""
        requests = [f"{name}: {each.stop_reason}" for name, each in self._callbacks.items() if each.stop_reason]
        return [*requests, *(f"{name}: {reason}" for name, reason in self.watchers.stop_reasons.items())]

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the state of every callback by name."""
        found: dict[str, dict[str, Any]] = {}
        self._each(lambda callback: found.update({callback.name: _checked_state(callback)}))
        return found

    def restore(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restore the callbacks that the checkpoint has a state of."""
        self._each(lambda each: each.load_state_dict(states[each.name]) if each.name in states else None)

    def _report(self, call: Callable[[Callback, CallbackStep], Any], step: int, tokens: int) -> None:
        if not self._callbacks:
            return
        view = CallbackStep(step, tokens, {name: (value[0] / value[1]).float() for name, value in self._sums.items()})

        def one(callback: Callback) -> None:
            values = call(callback, view) or {}
            means = {f"callback/{callback.name}/{name}": _with_count(value) for name, value in values.items()}
            if means:
                self._pending.append((callback.name, StepMetrics(means=means)))

        self._each(one)

    def _each(self, call: Callable[[Callback], None]) -> None:
        for name, callback in self._callbacks.items():
            self.watchers.call(_subject(name), partial(call, callback))


def _subject(callback: str) -> str:
    return f"the callback {callback}"


def _checked_state(callback: Callback) -> dict[str, Any]:
    """Return the state of a callback, which a checkpoint must be able to hold."""
    state = callback.state_dict()
    encode(state, "state_dict()", {})
    return state


def _with_count(value: Tensor) -> Tensor:
    """Return a scalar as [sum, count]."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"expected a tensor with one element for each metric, got {got}")
    value = value.detach().double().reshape(())
    return torch.stack((value, torch.ones_like(value)))
