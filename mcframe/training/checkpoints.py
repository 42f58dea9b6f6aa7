"""Checkpoints: complete or not there at all, the newest few kept, resumed bit by bit.

A checkpoint is a folder `checkpoints/tokens-N` of DeepSpeed's files, one `rank-R.pt` a rank (random states and the
unread logging interval) and `complete.json`, which is written last. The folder gets its name when all is in it.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mcframe.errors import UserError
from mcframe.training.engine import Engine, barrier

COMPLETE = "complete.json"
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, AssertionError, pickle.UnpicklingError)
"""What torch and DeepSpeed raise for files that are damaged, missing or of another model."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk and what `complete.json` says of it."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """Where the token clock stood."""
        return int(self.facts["tokens"])


def checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    found = [read(path.parent) for path in (run_dir / "checkpoints").glob(f"tokens-*/{COMPLETE}")]
    return sorted(found, key=lambda checkpoint: checkpoint.tokens)


def read(path: Path) -> Checkpoint:
    """The checkpoint in this folder. Raises UserError where `complete.json` cannot be read."""
    try:
        return Checkpoint(path, json.loads((path / COMPLETE).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete checkpoint: {error}",
            remedy="name another with --resume DIR, or remove this folder to go on from the one before",
        ) from error


def find(place: Path) -> Checkpoint:
    """The checkpoint that a path means: itself, or the newest of a run directory. Raises UserError if none."""
    if (place / COMPLETE).exists():
        return read(place)
    found = checkpoints(place)
    if not found:
        raise UserError(
            f"{place} holds no complete checkpoint",
            remedy="name a run directory or a folder checkpoints/tokens-N in it",
        )
    return found[-1]


def set_aside(run_dir: Path, tokens: int) -> None:
    """Move checkpoints beyond `tokens`, of a branch that is being left, to `checkpoints/superseded`: none is lost."""
    for later in checkpoints(run_dir):
        if later.tokens > tokens:
            place = later.path.parent / "superseded" / later.path.name
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(exist_ok=True)
            os.rename(later.path, place)


def save(
    engine: Engine,
    run_dir: Path,
    clock: Mapping[str, int],
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint; collective. Returns its folder.

    clock   `tokens`, and the settings that its reading depends on: a run that goes on must have the same
    shared  is the same on all ranks; own: this rank's
    Raises UserError where a rank's part did not arrive in the folder.
    """
    rank, tokens = dist.get_rank(), clock["tokens"]
    folder = run_dir / "checkpoints"
    name = f"tokens-{tokens:015d}"
    partial, final = folder / f".writing-{name}", folder / name
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    engine.wrapped.save_checkpoint(str(folder), tag=partial.name, client_state=dict(shared), save_latest=False)
    torch.save({**own, "random": _random_states()}, partial / f"rank-{rank}.pt")
    barrier()
    _check_whole(partial)
    barrier()  # rank 0 must not rename the folder while another rank still looks into it
    if rank == 0:
        facts = {**clock, "world_size": dist.get_world_size(), "zero_stage": engine.stage}
        (partial / COMPLETE).write_text(json.dumps(facts) + "\n", "utf-8")
        if final.exists():  # the same place reached again, after resuming from an older one
            shutil.rmtree(final)
        os.rename(partial, final)
        others = [checkpoint.path for checkpoint in checkpoints(run_dir) if checkpoint.path != final]
        for old in others[: max(0, len(others) - max(1, keep) + 1)]:
            shutil.rmtree(old)
    barrier()
    return final


def load(engine: Engine, checkpoint: Checkpoint, clock: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load weights, optimizer and schedule; returns what `save` was given as (shared, own). Collective.

    Raises UserError where ranks, ZeRO stage or the clock's settings differ, or where the files do not fit the model
    or are damaged.
    """
    facts, world = checkpoint.facts, dist.get_world_size()
    if (facts["world_size"], facts["zero_stage"]) != (world, engine.stage):
        raise UserError(
            f"{checkpoint.path} was written by {facts['world_size']} rank(s) at ZeRO {facts['zero_stage']}; this run "
            f"has {world} at ZeRO {engine.stage}",
            remedy=f"start {facts['world_size']} rank(s) with deepspeed.zero_stage = {facts['zero_stage']}",
        )
    for name, value in clock.items():
        if name != "tokens" and facts[name] != value:
            raise UserError(
                f"{checkpoint.path} was written with {name} = {facts[name]}; this run has {value}, so the two would "
                "not read the same tokens",
                remedy=f"set {name} = {facts[name]}, or start anew with --resume never",
            )
    try:
        _, shared = engine.wrapped.load_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
        own = torch.load(checkpoint.path / f"rank-{dist.get_rank()}.pt", map_location="cpu", weights_only=False)
    except UNREADABLE as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{checkpoint.path} cannot be loaded: {first}",
            remedy="if the model was changed, start anew with --resume never; if the files are damaged, remove the "
            "folder to go on from the checkpoint before",
        ) from error
    _restore_random_states(own.pop("random"))
    return shared, own


def _check_whole(partial: Path) -> None:
    """Raises UserError, on every rank, where the folder lacks a rank's part: then the nodes do not share it."""
    missing = [rank for rank in range(dist.get_world_size()) if not (partial / f"rank-{rank}.pt").exists()]
    if missing:
        raise UserError(
            f"{partial} lacks what rank {missing[0]} wrote: the nodes do not share the run directory",
            remedy="put the run directory on storage that all nodes share: --run-dir DIR",
        )


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
