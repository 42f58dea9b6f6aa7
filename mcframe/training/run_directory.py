"""The directory of a run: its path, the checkpoint to resume from, and the record of its origin."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mcframe.errors import UserError
from mcframe.files import replaced
from mcframe.safe_text import redacted
from mcframe.training.checkpoint_folder import Checkpoint, find, folders, newest
from mcframe.training.run_lock import LOCK
from mcframe.trust import remember, trusted_runs

_log = logging.getLogger(__name__)

METRICS, BOUND, OPERATIVE, PROVENANCE = "metrics.jsonl", "config.gin", "operative.gin", "provenance.json"


@dataclass(frozen=True)
class RunPlan:
    """The directory of a run, the checkpoint that it resumes from, if any, and its bindings as values of JSON.

    `seen` is what the directory held when the plan was made.
    """

    directory: Path
    checkpoint: Checkpoint | None
    bindings: Mapping[str, Any] = field(default_factory=dict)
    seen: object = None

    def check_unchanged(self) -> None:
        """Raise UserError if another run has written to the directory since the plan was made."""
        if self.seen != _seen(self.directory):
            raise UserError(
                f"{self.directory}: another run has written to it since this one started", remedy="Repeat the command."
            )


def _seen(directory: Path) -> tuple[list[str], int]:
    """Return the names of the checkpoints in a directory, and the time of the last row of its metrics."""
    metrics = directory / METRICS
    names = sorted(path.name for path in (directory / "checkpoints").glob("tokens-*"))
    return names, metrics.stat().st_mtime_ns if metrics.exists() else 0


def plan(name: str, run_dir: Path | None, resume: str, on_damage: str = "older") -> RunPlan:
    """Return the directory and the checkpoint. They depend on the file system only, and are equal on every rank.

    Args:
        name: Name of the run, for `runs/NAME` without a `run_dir`.
        run_dir: The directory, if the command line has one.
        resume: `auto` resumes if the directory has a checkpoint, `never` takes a new directory; otherwise the run
            directory or checkpoint to resume from.
        on_damage: `older` or `stop`; see `checkpoint.on_damage`.

    Raises:
        UserError: The checkpoint to resume from does not exist or is damaged, or a run would be overwritten.
    """
    directory = run_dir or Path("runs") / name
    if resume == "never":
        if run_dir is not None and ((directory / METRICS).exists() or folders(directory)):
            raise UserError(
                f"{directory} already holds a run, and --resume never would overwrite it",
                remedy="Pass another --run-dir, or remove --resume never to resume the run.",
            )
        new = directory if run_dir is not None else _unused(directory)
        return RunPlan(new, None, seen=_seen(new))
    seen = _seen(directory)
    if resume != "auto":
        return RunPlan(directory, find(Path(resume)), seen=seen)
    return RunPlan(directory, newest(directory, on_damage), seen=seen)


def _unused(directory: Path) -> Path:
    candidate, number = directory, 1
    while (candidate / METRICS).exists() or (candidate / LOCK).exists() or folders(candidate):
        number += 1
        candidate = directory.with_name(f"{directory.name}-{number}")
    return candidate


def write_provenance(directory: Path, bound: str, facts: dict[str, Any]) -> None:
    """Write all bindings to `config.gin`, which can start the run again, and its origin to `provenance.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    origin = json.dumps({**_origin(), **facts}, indent=2) + "\n"
    for name, text in ((BOUND, bound), (PROVENANCE, origin)):
        with replaced(directory / name) as partial:
            partial.write_text(text, "utf-8")
    if not remember(directory):
        _log.warning(
            "warning: %s cannot be written: a run with plug-ins or paths of yours needs --trust", trusted_runs()
        )


def remove_partial_files(directory: Path) -> None:
    """Remove the files that a killed run was writing when it ended."""
    for file in (*directory.glob(".*.partial"), *directory.glob("*/.*.partial"), *directory.glob(".shared-by-port-*")):
        file.unlink(missing_ok=True)


def _origin() -> dict[str, Any]:
    return {
        "command": [redacted(argument) for argument in sys.argv],
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        },
        "versions": {name: version(name) for name in ("mcframe", "torch", "deepspeed", "gin-config", "pluggy")},
        "revision": revision(),
    }


def processor() -> str:
    """Return the name of the processor, or of its architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def revision() -> str | None:
    """Return the git revision of the source, with `+` if files differ from it; None outside a checkout."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=source, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()
