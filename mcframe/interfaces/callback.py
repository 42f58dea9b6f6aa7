"""The interface of a callback: code that acts at named moments of training."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.interfaces.data import Tokenizer
from mcframe.interfaces.focus import Allocator


@dataclass(frozen=True)
class CallbackRun:
    """A run, as callbacks see it before its first step.

    Attributes:
        model: The model that is trained. Callbacks may read it and change its parameters in `after_step`.
        losses: The losses of the run by name.
        config: Every binding by its gin name, macros resolved, as values of JSON.
        directory: The run directory.
        rank: This rank.
        world_size: The number of ranks.
        total_tokens: Dataset tokens of the complete run.
        tokenizer: The tokenizer.
        allocator: Makes the run's allocator for a tree.
    """

    model: nn.Module
    losses: Mapping[str, nn.Module]
    config: Mapping[str, Any]
    directory: Path
    rank: int
    world_size: int
    total_tokens: int
    tokenizer: Tokenizer | None = None
    allocator: Callable[[ContextTree], Allocator] | None = None


@dataclass(frozen=True)
class CallbackStep:
    """An optimizer step, as callbacks see it.

    Attributes:
        step: Optimizer steps before this one.
        tokens: Dataset tokens after this step.
        losses: Scalar tensors, detached: `train/loss`, and each `loss/NAME` unweighted; means over this rank's
            micro-batches of the step.
    """

    step: int
    tokens: int
    losses: Mapping[str, Tensor]


class StopRun(Exception):
    """Stop the run: raised in a hook or a callback, it acts as `Callback.request_stop`. Its text is the reason.

    Every other exception of a hook or a callback is a warning, and the run continues without it.
    """


class Callback(ABC):
    """Acts at named moments of training. Factory: `factory()`. Exists on every rank.

    Every hook does nothing unless it is overridden. Tensors must not be read back to the host in `after_backward` and
    `after_step`. A hook that raises ends the callback, not the run: a warning names the plug-in. An example:

        class LargestWeight(Callback):
            name = "largest_weight"

            def on_start(self, run):
                self.parameters = list(run.model.parameters())

            def after_step(self, step):
                return {"value": torch.stack([each.detach().abs().max() for each in self.parameters]).max()}
    """

    name: str
    """Names its metrics, `callback/NAME/METRIC`, and its state in checkpoints. Unique in a run."""

    stop_reason: str = ""
    """The reason why the run is to stop, if `request_stop` was called."""

    def request_stop(self, reason: str) -> None:
        """Stop the run cleanly after this step: it is validated and saved as at its end. Any rank may request it."""
        self.stop_reason = reason

    def on_start(self, run: CallbackRun) -> None:
        """Prepare for a run. Called once, before the first step and after a checkpoint was loaded."""
        return

    def after_backward(self, step: CallbackStep) -> Mapping[str, Tensor] | None:
        """Act on gradients, after the last backward pass of a step and before the optimizer.

        At ZeRO 0 gradients are in `parameter.grad`. At ZeRO 1 to 3 they are partitioned over the ranks;
        `deepspeed.utils.safe_get_full_grad` gathers one.

        Returns:
            Metrics of this step, scalar tensors by name, logged as the mean over the steps of a logging interval and
            over ranks. Return the same names on every rank.
        """
        return None

    def after_step(self, step: CallbackStep) -> Mapping[str, Tensor] | None:
        """Act after the optimizer's update. Returns metrics as `after_backward` does."""
        return None

    def on_metrics(self, tokens: int, metrics: Mapping[str, float]) -> None:
        """Receive logged metrics: a logging interval, a validation or evaluations. They are equal on every rank."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; it is stored in checkpoints, separately for each rank."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Called before `on_start` in a resumed run."""
        return
