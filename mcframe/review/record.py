"""A run read back from its folder, in any state."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcframe.errors import UserError
from mcframe.metrics.jsonl_logger import METRICS, TEXTS, check_own, parse
from mcframe.metrics.summary import SUMMARY
from mcframe.review.event_files import Events, event_files, read_events
from mcframe.review.series import Series
from mcframe.safe_text import redacted_setting
from mcframe.sweep.results import EVALUATION
from mcframe.training.run_directory import OPERATIVE, PROVENANCE

STRIPS = "working_contexts"
_CLOCK = ("tokens", "step", "time")
_SILENT_INTERVALS, _SILENT_S = 10, 600.0


@dataclass
class Record:
    """The files of a run.

    Attributes:
        series: metric -> its values.
        config: binding of the operative configuration -> its value as gin writes it.
        provenance: command, machine, versions, revision.
        summary: the summary at the end of the run, if there is one.
        evaluation: metric -> value, from `mcframe eval`.
        strips: (tokens, working contexts as text), the first and the last.
        state: finished, interrupted, running, or stopped without a summary.
        x: unit of `tokens`: tokens, or steps where a third-party log does not count tokens.
        lines: number of lines or values that were read.
        read: what was read, as text.
        steps, tokens, times: first and last of them.
        notes: remarks on the files.
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
        """Return a metric's series, None if it has no finite value."""
        series = self.series.get(name)
        return series if series is not None and series.count else None

    def last(self, name: str) -> float | None:
        """Return a metric's latest value."""
        series = self.get(name)
        return None if series is None else series.last

    def named(self, prefix: str, suffix: str = "") -> list[str]:
        """Return the metrics with values whose names begin and end like this, sorted."""
        return sorted(n for n, s in self.series.items() if s.count and n.startswith(prefix) and n.endswith(suffix))

    def add(self, tokens: int, step: int, now: float, metrics: Iterable[tuple[str, Any]]) -> None:
        """Add the metrics of one line of the log."""
        if not self.lines:
            self.steps, self.tokens, self.times = (step, step), (tokens, tokens), (now, now)
        self.lines += 1
        self.steps = (min(self.steps[0], step), max(self.steps[1], step))
        self.tokens = (min(self.tokens[0], tokens), max(self.tokens[1], tokens))
        self.times = (self.times[0], max(self.times[1], now))
        for name, value in metrics:
            if name not in _CLOCK and (value is None or isinstance(value, int | float)):
                self.series.setdefault(name, Series()).add(tokens, step, value)


def read_run(directory: Path, begin: int | None = None, end: int | None = None) -> Record:
    """Read a run's folder.

    Metrics come from `metrics.jsonl`, in bounded memory; in a folder without that file, from TensorBoard event files.

    Args:
        directory: the run directory.
        begin: the first optimizer step to read.
        end: the last optimizer step to read.

    Raises:
        UserError: the folder has no metrics, or none between these steps.
    """
    if begin is not None and end is not None and begin > end:
        raise UserError(
            f"expected --from before --to, got {begin} and {end}", remedy="Pass the earlier step to --from."
        )
    if not directory.is_dir():
        raise UserError(f"expected a folder, got {directory}", remedy="Pass a run directory, such as runs/quickstart.")
    record = Record(directory)
    lowest, highest = -math.inf if begin is None else begin, math.inf if end is None else end
    texts: Iterable[tuple[int, str]] = ()
    if (directory / METRICS).exists():
        _read_metrics(record, lowest, highest)
        if (directory / TEXTS).exists():
            texts = _read_strips(directory / TEXTS)
        elif event_files(directory):  # a run older than texts.jsonl
            texts = read_events(directory).texts[STRIPS]
    elif event_files(directory):
        events = read_events(directory)
        _take_events(record, events, lowest, highest)
        texts = events.texts[STRIPS]
    else:
        raise UserError(
            f"expected {METRICS} or TensorBoard event files in {directory}, got neither",
            remedy="Pass the folder of a run.",
        )
    if not any(series.count for series in record.series.values()):
        raise UserError(
            f"{directory}: no metric between steps {begin or 0:,} and {'the end' if end is None else f'{end:,}'}",
            remedy="Wait for the run's first line, or pass other steps.",
        )
    for at, text in texts:
        if at <= record.tokens[1]:
            record.strips = [*record.strips[:1], (at, text)]
    _read_other_files(record)
    return record


def _read_metrics(record: Record, lowest: float, highest: float) -> None:
    torn = 0
    # Line by line: the file of a long run is larger than memory.
    with (record.directory / METRICS).open("rb") as file:
        for line in file:
            entry = parse(line)
            if entry is None:
                torn += 1
            elif lowest <= entry["step"] <= highest:
                now = entry.get("time")
                record.add(entry["tokens"], entry["step"], now if isinstance(now, int | float) else 0.0, entry.items())
    if not record.lines:
        check_own(record.directory / METRICS)
    record.read = f"{record.lines:,} lines of {METRICS}"
    if torn:
        record.notes.append(f"{torn} line(s) of {METRICS} are incomplete or no metrics, and were skipped.")


def _read_strips(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a crash truncated the line; the picture is missing, the review is not
            if isinstance(entry, dict) and entry.get("name") == STRIPS and {"tokens", "text"} <= entry.keys():
                yield entry["tokens"], entry["text"]


def _take_events(record: Record, events: Events, lowest: float, highest: float) -> None:
    record.x = "tokens" if events.counts_tokens else "steps"
    for name, points in events.scalars.items():
        tokens, steps = (at.astype(int).tolist() for at in events.clock(np.array(points)[:, 0]))
        for at, step, (_, now, value) in zip(tokens, steps, points, strict=True):
            if lowest <= step <= highest:
                record.add(at, step, now, [(name, value)])
    record.read = f"{record.lines:,} values of TensorBoard event files"
    if not events.counts_tokens:
        record.notes.append("The log does not count tokens; its x axis is taken as optimizer steps.")


def _read_other_files(record: Record) -> None:
    directory = record.directory
    record.provenance = _json(record, directory / PROVENANCE)
    record.summary = _json(record, directory / SUMMARY)
    measured = _json(record, directory / EVALUATION).get("metrics")
    measured = measured if isinstance(measured, dict) else {}
    record.evaluation = {name: float(value) for name, value in measured.items() if isinstance(value, int | float)}
    record.config = read_config(directory / OPERATIVE)
    record.state = _state(record)


def _json(record: Record, file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError:
        record.notes.append(f"{file.name} is incomplete, and was skipped.")
        return {}
    return content if isinstance(content, dict) else {}


def read_config(file: Path) -> dict[str, str]:
    """Return the bindings of an operative configuration, key -> value as written. Empty if the file is missing."""
    if not file.exists():
        return {}
    found: dict[str, str] = {}
    key = ""
    for line in file.read_text("utf-8", "replace").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, equals, value = line.partition(" = ")
        if line[0].isspace() or not equals:  # gin breaks long values over lines
            found[key] = f"{found.get(key, '')} {line.strip()}".strip()
        else:
            key = name.strip()
            found[key] = value.strip()
    found.pop("", None)
    return {key: redacted_setting(key.rpartition(".")[2], value) for key, value in found.items()}


def _state(record: Record) -> str:
    ended = record.summary.get("tokens")
    if isinstance(ended, int | float) and ended >= record.tokens[1]:
        return str(record.summary.get("status", "finished"))
    interval = (record.times[1] - record.times[0]) / max(1, record.lines - 1)
    silent = time.time() - record.times[1]
    if record.times[1] and silent < max(_SILENT_S, _SILENT_INTERVALS * interval):
        return "running"
    return "stopped without a summary"
