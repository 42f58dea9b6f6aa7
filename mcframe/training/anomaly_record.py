"""Records of anomalies, `RUN/anomalies/step-N`: the batch, the random states and weights, to run the step again.

`anomaly.json` describes it. `rank-R.safetensors` has the micro-batches of a rank with their losses, and that of rank 0
the weights before the step, or of the last checkpoint before it. No file can hold code.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch.distributed as dist
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from mcframe.bounds import Count, NonNegativeInt, Size
from mcframe.errors import UserError
from mcframe.training import state_files
from mcframe.training.recent_steps import RecentStep
from mcframe.training.train_step import StepBatch

FOLDER, FACTS = "anomalies", "anomaly.json"


@dataclass(frozen=True, kw_only=True)
class AnomalyFacts:
    """The content of `anomaly.json`.

    Attributes:
        step: Number of the step, from 1.
        position: Index of its first sequence in the data.
        reaction: What the run did.
        nonfinite: Whether loss or gradient is not finite; otherwise the loss is a spike.
        loss, mean, deviation: Its loss, and mean and standard deviation of the losses before, NaN if not computed.
        length: Entries of its variants.
        ranks, threads: Number of ranks, and threads of each.
        weights: Origin of the weights: `the step`, `the start`, which a replay builds again, or a checkpoint.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="strings")

    step: Count
    position: NonNegativeInt
    reaction: Literal["stop", "skip", "roll_back"]
    nonfinite: bool
    loss: float
    mean: float
    deviation: float
    length: NonNegativeInt
    ranks: Size
    threads: Size
    weights: Annotated[str, Field(pattern=r"^(the step|the start|tokens-\d{15})$")]

    @property
    def problem(self) -> str:
        """A description of the anomaly."""
        if self.nonfinite:
            return "the gradient is not finite" if math.isfinite(self.loss) else f"the loss is {self.loss}"
        return (
            f"the loss of {self.loss:.4g} is {self.loss - self.mean:.4g} nats above the mean of the steps before "
            f"(standard deviation {self.deviation:.2g})"
        )


_FACTS = TypeAdapter(AnomalyFacts)


@dataclass(frozen=True)
class AnomalyRecord:
    """A record on disk: its folder and the content of `anomaly.json`."""

    path: Path
    facts: AnomalyFacts

    def load(self) -> tuple[list[dict[str, Any]], dict[str, Tensor] | None]:
        """Return micro-batches, losses and random states of each rank, and the weights, if saved.

        Raises:
            UserError: The files are damaged.
        """
        try:
            state = state_files.read(self.path)
            ranks = [state.value(rank, "own") for rank in range(self.facts.ranks)]
            for each in ranks:
                each["batches"] = [StepBatch(length=self.facts.length, **batch) for batch in each["batches"]]
            return ranks, state.value(0, "weights")
        except Exception as error:  # a damaged file may lead to any
            raise UserError(
                f"{self.path} cannot be read: {error}", remedy="Pass another step with --step N."
            ) from error


def records(run_dir: Path) -> list[AnomalyRecord]:
    """Return the records of a run, in the order of steps. Raises UserError for one that is damaged."""
    found = []
    for file in (run_dir / FOLDER).glob(f"step-*/{FACTS}"):
        try:
            found.append(AnomalyRecord(file.parent, _FACTS.validate_json(file.read_bytes())))
        except (OSError, ValidationError) as error:
            raise UserError(f"{file} cannot be read: {error}", remedy="Remove its folder.") from error
    return sorted(found, key=lambda record: record.facts.step)


def write(run_dir: Path, facts: AnomalyFacts, step: RecentStep, weights: Mapping[str, Tensor] | None, keep: int) -> str:
    """Write a record, in place of an older one of the same step. Collective. Return an error as text, or nothing.

    Args:
        run_dir: The run directory.
        facts: The content of `anomaly.json`.
        step: The step, with the micro-batches of this rank.
        weights: Complete parameters and buffers, on rank 0, if any are saved.
        keep: Number of records to keep.
    """
    rank, partial = dist.get_rank(), run_dir / FOLDER / ".writing"
    error = _error_of(lambda: _write_rank(partial, rank, facts, step, weights))
    errors = [error] * dist.get_world_size()
    if len(errors) > 1:
        dist.all_gather_object(errors, error)
    error = next(filter(None, errors), "")
    if rank == 0:
        error = error or _error_of(lambda: _complete(partial, facts, keep))
        shutil.rmtree(partial, ignore_errors=True)
    return error


def _error_of(action: Callable[[], None]) -> str:
    try:
        action()
    except OSError as error:
        return str(error)
    return ""


def _write_rank(
    folder: Path, rank: int, facts: AnomalyFacts, step: RecentStep, weights: Mapping[str, Tensor] | None
) -> None:
    """Write the file of a rank, with the weights on rank 0."""
    batches = [{name: getattr(batch, name) for name in ("tokens", "seeds", "loss_mask")} for batch, _ in step.batches]
    own = {"batches": batches, "losses": [loss for _, loss in step.batches], "random": step.random}
    found = {"own": own, "weights": dict(weights) if weights is not None and rank == 0 else None}
    tensors = dict[str, Tensor]()
    encoded = {name: state_files.encode(each, name, tensors) for name, each in found.items()}
    folder.mkdir(parents=True, exist_ok=True)
    state_files.write(folder, rank, tensors, {"world_size": facts.ranks, **encoded})


def _complete(partial: Path, facts: AnomalyFacts, keep: int) -> None:
    """Describe a record, move it to its final name, and remove the oldest ones."""
    final = partial.with_name(f"step-{facts.step}")
    (partial / FACTS).write_bytes(_FACTS.dump_json(facts, indent=2) + b"\n")
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)
    written = sorted(final.parent.glob(f"step-*/{FACTS}"), key=lambda file: file.stat().st_mtime_ns)
    for old in written[:-keep]:
        shutil.rmtree(old.parent, ignore_errors=True)
