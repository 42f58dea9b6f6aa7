"""Checkpoints: written atomically, the newest ones kept, resumed bit by bit.

A checkpoint is a folder `checkpoints/tokens-N` of one `rank-R.safetensors` a rank and `complete.json`, which is written
last. A complete folder is renamed to its final name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from mcframe.errors import UserError
from mcframe.files import is_full
from mcframe.training import state_files
from mcframe.training.engine import Engine, barrier
from mcframe.training.engine_state import put, take
from mcframe.training.random_states import random_states
from mcframe.training.rank_state import own_state

COMPLETE = "complete.json"
_ALMOST_NOTHING = 2**20
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, SafetensorError)
"""Exceptions for files that are damaged, missing or of another model."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, and the content of its `complete.json`."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """Dataset tokens that the run had read."""
        return int(self.facts["tokens"])


def checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a run, oldest first."""
    found = [read(path.parent) for path in (run_dir / "checkpoints").glob(f"tokens-*/{COMPLETE}")]
    return sorted(found, key=lambda checkpoint: checkpoint.tokens)


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in this folder.

    Raises:
        UserError: `complete.json` cannot be read.
    """
    try:
        return Checkpoint(path, json.loads((path / COMPLETE).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete checkpoint: {error}",
            remedy="Pass another one with --resume DIR, or remove this folder to resume from the checkpoint before it.",
        ) from error


def find(path: Path) -> Checkpoint:
    """Return the checkpoint at a path, or the newest one of a run directory.

    Raises:
        UserError: There is none.
    """
    if (path / COMPLETE).exists():
        return read(path)
    found = checkpoints(path)
    if not found:
        raise UserError(
            f"{path} holds no complete checkpoint",
            remedy="Pass a run directory, or a folder checkpoints/tokens-N in it.",
        )
    return found[-1]


def archive(run_dir: Path, tokens: int) -> None:
    """Move checkpoints after `tokens`, of a branch that is no longer followed, to `checkpoints/superseded`."""
    for later in checkpoints(run_dir):
        if later.tokens > tokens:
            archived = later.path.parent / "superseded" / later.path.name
            shutil.rmtree(archived, ignore_errors=True)
            archived.parent.mkdir(exist_ok=True)
            os.rename(later.path, archived)


def save(
    engine: Engine,
    run_dir: Path,
    position: Mapping[str, Any],
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and return its folder. Collective.

    Args:
        engine: The engine.
        run_dir: The run directory.
        position: `tokens`, the bindings and the data of the run; see `mcframe.training.resume_rules`.
        shared: State that is equal on all ranks.
        own: State of this rank.
        keep: The number of checkpoints to keep.

    Raises:
        UserError: The folder is missing the file of a rank, or a file could not be written.
    """
    rank, tokens = dist.get_rank(), position["tokens"]
    folder = run_dir / "checkpoints"
    name = f"tokens-{tokens:015d}"
    partial, final = folder / f".writing-{name}", folder / name
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    tensors, facts = take(engine)
    for key, value in {"shared": shared, "own": {**own, "random": random_states()}}.items():
        facts[key] = state_files.encode(value, key, tensors)
    try:
        state_files.write(partial, rank, tensors, facts)
    except OSError as error:
        raise _not_written(error, partial, run_dir) from error
    barrier()
    _check_complete(partial)
    barrier()  # rank 0 must not rename the folder while another rank checks it
    if rank == 0:
        facts = {**position, "world_size": dist.get_world_size(), "zero_stage": engine.stage}
        (partial / COMPLETE).write_text(json.dumps(facts) + "\n", "utf-8")
        if final.exists():  # written before the run resumed from an older checkpoint
            shutil.rmtree(final)
        os.rename(partial, final)
        others = [checkpoint.path for checkpoint in checkpoints(run_dir) if checkpoint.path != final]
        for old in others[: max(0, len(others) - max(1, keep) + 1)]:
            shutil.rmtree(old)
    barrier()
    return final


def load(engine: Engine, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load weights, optimizer and schedule, and return `shared` and `own` of `save`. Collective.

    Random states stay as they are; those of the checkpoint are `own["random"]`.

    Raises:
        UserError: The files are damaged, or do not fit the model, or a state of the optimizer cannot be carried to
            these ranks and this ZeRO stage.
    """
    try:
        state = state_files.read(checkpoint.path)
        put(engine, state)
        return state.value(0, "shared"), own_state(state, engine.stage)
    except UNREADABLE as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{checkpoint.path} cannot be loaded: {first}",
            remedy="If the model was changed, start a new run with --resume never. If files are damaged, remove the "
            "folder to resume from the checkpoint before it.",
        ) from error


def _not_written(error: OSError, partial: Path, run_dir: Path) -> UserError:
    """Return the error for a checkpoint that could not be written, and remove what there is of it."""
    files = sorted(partial.glob("*"), key=lambda file: file.stat().st_mtime_ns)
    full = is_full(error) or shutil.disk_usage(partial if partial.exists() else run_dir).free < _ALMOST_NOTHING
    shutil.rmtree(partial, ignore_errors=True)
    reason = "no space left on the device" if full else f"cannot be written: {str(error).strip().splitlines()[0]}"
    kept = checkpoints(run_dir)
    resume = f"it resumes from {kept[-1].path}, which is kept" if kept else "no checkpoint is kept"
    return UserError(
        f"{files[-1] if files else partial}: {reason}; the checkpoint is not written",
        remedy=f"Free space, or keep fewer checkpoints with checkpoint.keep, and repeat the command: {resume}.",
    )


def _check_complete(partial: Path) -> None:
    """Raise UserError, on every rank, if the file of a rank is missing: the nodes have no common run directory."""
    missing = [rank for rank in range(dist.get_world_size()) if not (partial / f"rank-{rank}.safetensors").exists()]
    if missing:
        raise UserError(
            f"{partial}: missing the file of rank {missing[0]}; the nodes have different run directories",
            remedy="Put the run directory on storage of all nodes with --run-dir DIR.",
        )
