"""A run read back from its folder, whatever state it is in."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcframe.errors import UserError
from mcframe.metrics.jsonl_logger import METRICS
from mcframe.metrics.summary import SUMMARY
from mcframe.review.event_files import event_files, read_scalars, read_texts
from mcframe.review.series import Series
from mcframe.sweep.results import EVALUATION
from mcframe.training.run_directory import OPERATIVE, PROVENANCE

STRIPS = "working_contexts"
_CLOCK = ("tokens", "step", "time")
_SILENT_INTERVALS, _SILENT_S = 10, 600.0


@dataclass
class Record:
    """What a run left.

    series       metric -> its values
    config       binding -> its value as gin writes it, from the operative configuration
    provenance   command, machine, versions, revision
    summary      what the run said at its end, if it did
    evaluation   metric -> value, from `mcframe eval`
    strips       (tokens, working contexts as text), the first and the last that were drawn
    state        finished, interrupted, running, or stopped without a summary
    x            what `tokens` of a series counts: tokens, or steps where a foreign log says nothing of tokens
    read         what was read, for the provenance
    notes        what a reader has to know about the files
    """

    directory: Path
    series: dict[str, Series] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    strips: list[tuple[int, str]] = field(default_factory=list)
    state: str = "unknown"
    x: str = "tokens"
    lines: int = 0
    read: str = ""
    steps: tuple[int, int] = (0, 0)
    tokens: tuple[int, int] = (0, 0)
    times: tuple[float, float] = (0.0, 0.0)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.directory.resolve().name

    def get(self, name: str) -> Series | None:
        """A metric's series; None where it has no finite value."""
        series = self.series.get(name)
        return series if series is not None and series.count else None

    def last(self, name: str) -> float | None:
        """A metric's latest value."""
        series = self.get(name)
        return None if series is None else series.last

    def named(self, prefix: str, suffix: str = "") -> list[str]:
        """Metrics with values whose names begin and end like this, sorted."""
        return sorted(n for n, s in self.series.items() if s.count and n.startswith(prefix) and n.endswith(suffix))


def read_run(directory: Path, begin: int | None = None, end: int | None = None) -> Record:
    """Read a run's folder, of any length, in bounded memory.

    begin, end   the first and the last optimizer step that count; None: all
    Metrics come from `metrics.jsonl`. A folder without it is read as TensorBoard's, if it holds event files.
    Raises UserError where there is neither, or no value between these steps.
    """
    if begin is not None and end is not None and begin > end:
        raise UserError(f"--from {begin} lies behind --to {end}", remedy="give the earlier step to --from")
    if not directory.is_dir():
        raise UserError(f"{directory} is no folder", remedy="name a run directory, such as runs/quickstart")
    record = Record(directory)
    lowest, highest = -math.inf if begin is None else begin, math.inf if end is None else end
    if (directory / METRICS).exists():
        _read_lines(record, lowest, highest)
    elif event_files(directory):
        scalars = read_scalars(directory, lowest, highest)
        record.series, record.x, record.lines = scalars.series, scalars.x, scalars.values
        record.steps, record.tokens, record.times = scalars.steps, scalars.tokens, scalars.times
        record.read = f"{scalars.values:,} values of TensorBoard event files"
        record.notes += scalars.notes
    else:
        raise UserError(
            f"{directory} holds neither {METRICS} nor TensorBoard event files",
            remedy="name the folder of a run, in which training writes metrics.jsonl",
        )
    if not any(series.count for series in record.series.values()):
        raise UserError(
            f"{directory} holds no metric between steps {begin or 0:,} and {'the end' if end is None else f'{end:,}'}",
            remedy="wait for the run's first line, or name other steps",
        )
    _read_rest(record)
    return record


def _read_lines(record: Record, lowest: float, highest: float) -> None:
    torn = 0
    # Line by line: the file of a long run is larger than memory.
    with (record.directory / METRICS).open("rb") as file:
        for line in file:
            entry = _parsed(line)
            if entry is None:
                torn += 1
                continue
            step = entry["step"]
            if lowest <= step <= highest:
                _take(record, entry)
    record.read = f"{record.lines:,} lines of {METRICS}"
    if torn:
        record.notes.append(f"{torn} line(s) of {METRICS} are torn or no metrics, and were left out.")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line of metrics; None for what a crash has torn, or has yet to be written."""
    try:
        entry = json.loads(line)
        float(entry["tokens"]), float(entry["step"])
    except (ValueError, KeyError, TypeError):
        return None
    return entry if isinstance(entry, dict) else None


def _take(record: Record, entry: Mapping[str, Any]) -> None:
    tokens, step = entry["tokens"], entry["step"]
    now = entry.get("time") or 0.0
    if not record.lines:
        record.steps, record.tokens, record.times = (step, step), (tokens, tokens), (now, now)
    record.lines += 1
    record.steps, record.tokens = (record.steps[0], step), (record.tokens[0], tokens)
    record.times = (record.times[0], now)
    for name, value in entry.items():
        if name in _CLOCK or not (value is None or isinstance(value, int | float)):
            continue
        if name not in record.series:
            record.series[name] = Series()
        record.series[name].add(tokens, step, value)


def _read_rest(record: Record) -> None:
    directory = record.directory
    record.provenance = _json(record, directory / PROVENANCE)
    record.summary = _json(record, directory / SUMMARY)
    measured = _json(record, directory / EVALUATION).get("metrics", {})
    record.evaluation = {name: float(value) for name, value in measured.items() if isinstance(value, int | float)}
    record.config = read_config(directory / OPERATIVE)
    # Strips are for the eye alone: event files that a crash has torn cost the picture, not the review.
    record.strips = [(at, text) for at, text in read_texts(directory, STRIPS) if at <= record.tokens[1]]
    record.state = _state(record)


def _json(record: Record, file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError:
        record.notes.append(f"{file.name} is torn, and was left out.")
        return {}
    return content if isinstance(content, dict) else {}


def read_config(file: Path) -> dict[str, str]:
    """Bindings of an operative configuration: key -> value as written. Empty where there is no file."""
    if not file.exists():
        return {}
    found: dict[str, str] = {}
    key = ""
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, equals, value = line.partition(" = ")
        if line[0].isspace() or not equals:  # gin breaks long values over lines
            found[key] = f"{found.get(key, '')} {line.strip()}".strip()
        else:
            key = name.strip()
            found[key] = value.strip()
    found.pop("", None)
    return found


def _state(record: Record) -> str:
    said = record.summary
    if said and said.get("tokens", 0) >= record.tokens[1]:
        return str(said.get("status", "finished"))
    interval = (record.times[1] - record.times[0]) / max(1, record.lines - 1)
    silent = time.time() - record.times[1]
    if record.times[1] and silent < max(_SILENT_S, _SILENT_INTERVALS * interval):
        return "running"
    return "stopped without a summary"
