"""Records of anomalies, `RUN/anomalies/step-N`: the batch, the random states and weights, to run the step again.

`anomaly.json` describes it, `rank-R.safetensors` has the micro-batches of a rank with their losses, and
`weights.safetensors` the weights before the step where they still existed when it was found. No file can hold code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcframe.errors import UserError
from mcframe.training.engine import barrier
from mcframe.training.recent_steps import RecentStep

FOLDER, FACTS, WEIGHTS = "anomalies", "anomaly.json", "weights.safetensors"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class AnomalyRecord:
    """A record on disk: its folder and the content of `anomaly.json`."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of the step, from 1."""
        return int(self.facts["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file. Raises UserError if it cannot be read."""
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.path / name} cannot be read: {error}", remedy="Pass another anomaly with --step N."
            ) from error


def records(run_dir: Path) -> list[AnomalyRecord]:
    """Return the records of a run, oldest first."""
    found = []
    for file in (run_dir / FOLDER).glob(f"step-*/{FACTS}"):
        if _NAME.fullmatch(file.parent.name):
            try:
                facts = json.loads(file.read_text("utf-8"))
                found.append(AnomalyRecord(file.parent, {**facts, "step": int(facts["step"])}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{file} cannot be read: {error}", remedy=f"Remove the folder {file.parent.name}."
                ) from error
    return sorted(found, key=lambda record: record.step)


def write(
    run_dir: Path, facts: Mapping[str, Any], step: RecentStep, weights: Mapping[str, Tensor] | None, keep: int
) -> str:
    """Write a record, in place of an older one of the same step. Collective. Return an error as text, or nothing.

    Args:
        run_dir: The run directory.
        facts: The content of `anomaly.json`.
        step: The step, with the micro-batches of this rank.
        weights: Parameters and buffers before the step, complete, on rank 0; None where they no longer exist.
        keep: Number of records to keep.
    """
    rank, name = dist.get_rank(), f"step-{facts['step']}"
    partial = run_dir / FOLDER / f".writing-{name}"
    error = ""
    try:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            if weights is not None:
                save_file(dict(weights), partial / WEIGHTS)
    except (OSError, SafetensorError) as failure:
        error = str(failure)
    barrier()
    try:
        save_file(_tensors(step), partial / f"rank-{rank}.safetensors")
    except (OSError, SafetensorError) as failure:
        error = error or str(failure)
    errors = [error] * dist.get_world_size()
    if len(errors) > 1:
        dist.all_gather_object(errors, error)
    error = next(filter(None, errors), "")
    if rank == 0:
        error = error or _complete(partial, partial.with_name(name), facts, keep)
        shutil.rmtree(partial, ignore_errors=True)
    return error


def _complete(partial: Path, final: Path, facts: Mapping[str, Any], keep: int) -> str:
    """Move a record to its final name, and remove the oldest ones. Return an error as text."""
    try:
        (partial / FACTS).write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", "utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        written = sorted(final.parent.glob(f"step-*/{FACTS}"), key=lambda file: file.stat().st_mtime_ns)
        for old in [file.parent for file in written if _NAME.fullmatch(file.parent.name)][:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _tensors(step: RecentStep) -> dict[str, Tensor]:
    """Return the micro-batches of this rank as tensors [micro-batch, ...], with losses and random states."""
    found: dict[str, list[Tensor]] = {}
    for batch, loss in step.batches:
        found.setdefault("losses", []).append(loss)
        for name in ("tokens", "seeds", "loss_mask"):
            if (value := getattr(batch, name)) is not None:
                found.setdefault(name, []).append(value)
    stacked = {name: torch.stack(values).cpu() for name, values in found.items()}
    return {name: value.contiguous() for name, value in {**stacked, **_random_tensors(step.random)}.items()}


def _random_tensors(states: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return random states as tensors; `random_from` reverses it."""
    if not states:
        return {}
    version, words, gauss = states["python"]
    _, keys, *numbers = states["numpy"]
    found = {
        "random.python": torch.tensor([version, *words]),
        "random.python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "random.numpy": torch.from_numpy(keys.astype(np.int64)),
        "random.numpy_numbers": torch.tensor(numbers, dtype=torch.float64),
    }
    return found | {f"random.{name}": states[name] for name in ("torch", "cuda") if name in states}


def random_from(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the random states in a record for `restore_random_states`, None if it has none."""
    if "random.torch" not in tensors:
        return None
    version, *words = tensors["random.python"].tolist()
    gauss = tensors["random.python_gauss"].tolist()
    position, has_gauss, cached = tensors["random.numpy_numbers"].tolist()
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    return {
        "python": (version, tuple(words), gauss[0] if gauss else None),
        "numpy": ("MT19937", keys, int(position), int(has_gauss), cached),
        **{name: tensors[f"random.{name}"] for name in ("torch", "cuda") if f"random.{name}" in tensors},
    }


def complete_weights(module: nn.Module, held: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return parameters and buffers on the CPU under their names. Collective at ZeRO 3.

    Args:
        module: The train step.
        held: Values of this rank in place of the present ones, by `module/NAME` or, at ZeRO 3, `partition/NAME`.
    """
    found = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        partition = getattr(tensor, "ds_tensor", None)
        if partition is None:
            found[name] = tensor.detach() if held is None else held.get(f"module/{name}", tensor.detach())
            continue
        own = partition.detach() if held is None else held.get(f"partition/{name}", partition.detach())
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        size, shape = getattr(tensor, "ds_numel"), getattr(tensor, "ds_shape")  # noqa: B009 - DeepSpeed adds them
        found[name] = torch.cat(parts)[:size].view(shape)
    return {name: value.to("cpu", copy=True).contiguous() for name, value in found.items()}


def describe(values: Sequence[float], nonfinite: bool) -> str:
    """Return what is wrong with a step: its loss, gradient norm, and the mean and deviation of the losses before."""
    loss, _, mean, deviation, *_ = values
    if nonfinite:
        return "the gradient is not finite" if np.isfinite(loss) else f"the loss is {loss}"
    return (
        f"the loss of {loss:.4g} is {loss - mean:.4g} nats above the mean of the steps before (standard deviation "
        f"{deviation:.2g})"
    )
