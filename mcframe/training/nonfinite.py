"""Errors for a loss, a gradient or a backward pass that fails, with the module and the plug-in of its origin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.errors import Location, UserError
from mcframe.registry.attribution import is_third_party, last_line
from mcframe.registry.checks import ContractError
from mcframe.training.anomaly import Origin, find_origin, restore, usable
from mcframe.training.build import build_step, plugin_name
from mcframe.training.checkpoint_folder import find
from mcframe.training.recent_steps import RecentStep
from mcframe.training.weights import load_weights, start_from

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer


def not_finite(trainer: Trainer, bad: RecentStep, loss: float) -> UserError | ContractError:
    """Return the error for a loss or a gradient that is not finite, with its origin if it can be found. Collective.

    The micro-batches of the bad step, and of the step before it, are run again. Weights that are no longer finite
    are replaced by those of the newest checkpoint, or by those at the start: the run ends in any case.
    """
    tokens = f"after {(bad.step + 1) * trainer.state.batch_tokens:,} tokens"
    origin, weights, failure = _examine(trainer, bad)
    problem = f"the gradient is not finite {tokens}" if math.isfinite(loss) else f"the loss is {loss} {tokens}"
    kept = f"Earlier checkpoints are kept in {trainer.plan.directory / 'checkpoints'}."
    if origin is not None:
        if origin.gradient:
            cause = f"a gradient first is not finite where {origin.what}"
            advice = "Keep roots, logarithms, norms and divisions away from 0 there, for example with clamp or eps."
        else:
            cause = f"its forward pass first returns {origin.what}, from finite weights"
            advice = "Return finite values for all inputs."
        return _error(trainer, origin, f"{problem}: {cause}", f"{advice} {kept}")
    if failure:
        return UserError(
            f"{problem}. Its origin is unknown: repeating the micro-batch failed with {failure}",
            remedy=f"Repeat with a smaller run.micro_batch to find it. {kept}",
        )
    optimizer = f"optimizer.{plugin_name(trainer.run_config.optimizer)}"
    return UserError(
        f"{problem}. The same tokens have a finite loss and finite gradients with {weights}, so that the updates of "
        f"@{optimizer} are the cause",
        remedy="Lower optimizer.lr, and optimizer.muon.lr with Muon, or lengthen the warm-up of the schedule. " + kept,
    )


def failed_backward(trainer: Trainer, batch: Any, error: RuntimeError) -> Exception:
    """Return the error of a backward pass, with the plug-in of the operation that failed if it can be found.

    Torch raises such an error outside of the plug-in's code. At ZeRO 3 a second pass would need all ranks.
    """
    if isinstance(error, torch.OutOfMemoryError | dist.DistError) or trainer.engine.stage == 3:
        return error
    origin = _quietly(trainer, batch)
    if not isinstance(origin, Origin) or not origin.gradient or _plugin_of(trainer, origin) is None:
        return error
    problem = f"the backward pass of {origin.what} failed: {last_line(error)}"
    return _error(trainer, origin, problem, "Correct the operation; --traceback prints the traceback.")


def _examine(trainer: Trainer, bad: RecentStep) -> tuple[Origin | None, str, str]:
    """Return the origin on the first rank that finds one, a description of the weights that were used, and an error.

    The error is that of a pass that failed for another reason, empty if there was none.
    """
    failure = ""
    weights = "the present weights"
    with _complete_weights(trainer):
        if not all(_on_every_rank(usable(trainer.engine.step))):
            weights, earlier = _earlier_weights(trainer)
            restore(trainer.engine.step, earlier)
    for batch in trainer.anomalies.recent.suspects(bad):
        found = _on_every_rank(_quietly(trainer, batch))
        if origins := [origin for origin in found if isinstance(origin, Origin)]:
            return origins[0], weights, ""
        failure = next((error for error in found if error), failure)
    return None, weights, failure


def _quietly(trainer: Trainer, batch: Any) -> Origin | str | None:
    """Return the origin in this micro-batch, None if there is none, or the error of a pass that fails otherwise."""
    try:
        return find_origin(trainer.engine.step, batch)
    except Exception as error:  # noqa: BLE001 - the error at hand is reported in any case
        return last_line(error)


def _earlier_weights(trainer: Trainer) -> tuple[str, Mapping[str, Tensor]]:
    """Return a description and the weights of the newest checkpoint, or those of the start of the run."""
    if (last := trainer.save_checkpoint.last) is not None:
        return f"the weights of {last.name}", load_weights(find(last))
    config = trainer.run_config
    step = build_step(config, trainer.components.tokenizer.vocab_size, trainer.components.tokenizer.separator)
    if config.start_from is not None:
        start_from(step, config.start_from)
    return "the weights at the start", step.state_dict()


def _complete_weights(trainer: Trainer) -> AbstractContextManager[None]:
    """Return a context in which every rank holds all weights. Changes of rank 0 hold for all."""
    if trainer.engine.stage < 3:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        list(trainer.engine.step.parameters()), modifier_rank=0
    )
    return gathered


def _on_every_rank(value: Any) -> list[Any]:
    """Return the value of every rank."""
    values = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def _plugin_of(trainer: Trainer, origin: Origin) -> Any:
    """Return the innermost third-party plug-in around the origin, or None."""
    path = origin.module
    while path:
        module = trainer.engine.step.get_submodule(path)
        if is_third_party(module):
            return module
        path = path.rpartition(".")[0]
    return None


def _error(trainer: Trainer, origin: Origin, problem: str, remedy: str) -> UserError | ContractError:
    """Return the error for an origin: of the plug-in, or of the module of mcframe."""
    location = Location(origin.file, origin.line) if origin.file else None
    path = origin.module.removeprefix("model.") or "the training step"
    if (plugin := _plugin_of(trainer, origin)) is not None:
        return ContractError(plugin, f"{problem} ({path})", method="forward", remedy=remedy, location=location)
    if not origin.gradient:
        remedy = f"Lower optimizer.lr, or lengthen the warm-up of the schedule. {remedy}"
    return UserError(f"{path}: {problem}", remedy=remedy, location=location)
