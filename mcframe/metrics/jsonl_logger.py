"""Metrics as JSON lines: the record that every other view can be rebuilt from."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from mcframe.hookspecs import MetricLogger, RunStart

METRICS = "metrics.jsonl"
SUPERSEDED = "metrics.superseded.jsonl"


class JsonlLogger(MetricLogger):
    """Appends a line `{"tokens": .., "step": .., "time": .., <metrics>}` per call to `metrics.jsonl`, flushed.

    time is in seconds since the epoch; a value that is not finite is written as null, which is what JSON has.
    Lines behind the point of resumption (all of them at a fresh start) are about to be computed anew: they
    move to `metrics.superseded.jsonl`, together with a line that a crash has torn.
    """

    def __init__(self, run: RunStart) -> None:
        self.path = run.directory / METRICS
        supersede(self.path, run.directory / SUPERSEDED, run.resume_tokens)
        self._file = self.path.open("a", encoding="utf-8")

    @property
    def place(self) -> tuple[str, str]:
        """Where this sink's record lies: a label and a path."""
        return "metrics", str(self.path)

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"tokens": tokens, "step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def supersede(path: Path, superseded: Path, resume_tokens: int | None) -> None:
    """Move the lines of a record behind the point of resumption (None: all lines) to the end of another file."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    keep = [_reached(line, -1 if resume_tokens is None else resume_tokens) for line in lines]
    if all(keep):
        return
    # First copy, then replace: a crash in between leaves lines twice, never not at all.
    with superseded.open("ab") as archive:
        archive.writelines(line.rstrip(b"\n") + b"\n" for line, kept in zip(lines, keep, strict=True) if not kept)
        archive.flush()
        os.fsync(archive.fileno())
    rest = path.with_suffix(".partial")
    rest.write_bytes(b"".join(line for line, kept in zip(lines, keep, strict=True) if kept))
    rest.replace(path)


def _reached(line: bytes, resume_tokens: int) -> bool:
    """Is this a whole line from at or before the resume point?"""
    if not line.endswith(b"\n"):
        return False
    try:
        return int(json.loads(line)["tokens"]) <= resume_tokens
    except (ValueError, KeyError, TypeError):
        return False
