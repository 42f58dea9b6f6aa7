"""Read the metrics of finished runs and compare rows with the baseline row, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mcframe.errors import did_you_mean
from mcframe.metrics.jsonl_logger import METRICS, parse
from mcframe.sweep.grid import Grid, Row
from mcframe.sweep.intervals import Estimate, estimate
from mcframe.training.run_directory import OPERATIVE, PROVENANCE

EVALUATION = Path("evaluation", "eval.json")
"""The file that `mcframe eval` writes in a run directory."""
TOKENS, STEP_TOKENS = "train/tokens", "train/tokens_per_step"
_AVERAGED = ("train/", "mc/")
_CLOCK = (TOKENS, STEP_TOKENS)


@dataclass(frozen=True)
class RunResult:
    """One finished run: its metrics, the revision of the code, and the bindings that had been read at its start."""

    metrics: Mapping[str, float]
    revision: str = ""
    read: frozenset[str] | None = None


@dataclass(frozen=True)
class RowResult:
    """A row over its seeds.

    Args:
        row: The row.
        seeds: Seed -> metrics.
        values: Metric -> mean over seeds.
        differences: Metric -> mean of this row's value less the baseline's, over the seeds of both; empty if the row
            is not comparable.
        comparable: Whether it read the baseline's tokens in the baseline's steps.
    """

    row: Row
    seeds: Mapping[int, Mapping[str, float]]
    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    comparable: bool


@dataclass(frozen=True)
class Comparison:
    """All rows with results, in the grid's order, and notes on their limits."""

    grid: Grid
    rows: Sequence[RowResult]
    notes: Sequence[str]

    @property
    def metrics(self) -> list[str]:
        """Return the grid's metrics that any run has."""
        return [name for name in self.grid.metrics if any(name in row.values for row in self.rows)]


def read_run(directory: Path, grid: Grid, row: Row) -> RunResult:
    """Read the directory of a finished run, with its evaluation if the grid evaluates this row."""
    lines = [entry for line in (directory / METRICS).read_bytes().splitlines() if (entry := parse(line))]
    metrics = final_metrics(lines, grid.average)
    evaluation = directory / EVALUATION
    if grid.evaluates(row) and evaluation.exists():
        measured = json.loads(evaluation.read_text("utf-8"))["metrics"]
        metrics |= {name: float(value) for name, value in measured.items() if isinstance(value, int | float)}
    provenance, operative = directory / PROVENANCE, directory / OPERATIVE
    revision = json.loads(provenance.read_text("utf-8")).get("revision") if provenance.exists() else None
    read = operative.read_text("utf-8").splitlines() if operative.exists() else None
    return RunResult(
        metrics, revision or "", None if read is None else frozenset(line.partition(" = ")[0] for line in read)
    )


def final_metrics(lines: Iterable[Mapping[str, Any]], average: float) -> dict[str, float]:
    """Return each metric at the end of training: its last value, or a mean if it depends on the batch.

    Args:
        lines: The entries of `metrics.jsonl`. Null values, which were not finite, are skipped.
        average: The last fraction of training, in tokens, over which `train/` and `mc/` metrics are averaged.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if "/" in name and value is not None:
                series.setdefault(name, []).append((line["tokens"], value))
    end = max((points[-1][0] for points in series.values()), default=0)
    return {name: _final(name, points, (1 - average) * end) for name, points in series.items()}


def _final(name: str, points: Sequence[tuple[int, float]], begin: float) -> float:
    late = [value for tokens, value in points if tokens > begin]
    averaged = name.startswith(_AVERAGED) and name not in _CLOCK and late
    return fmean(late) if averaged else points[-1][1]


def compare(grid: Grid, results: Mapping[str, Mapping[int, RunResult]], seeds: Sequence[int]) -> Comparison:
    """Return rows with intervals. `results` maps row and seed to finished runs; `seeds` are the requested ones."""
    base = results.get(grid.baseline, {})
    clocks = {_clock(run) for run in base.values()}
    rows = []
    for name, row in grid.rows.items():
        runs = results.get(name, {})
        if runs:
            comparable = {_clock(run) for run in runs.values()} <= clocks
            rows.append(_row(row, grid, runs, base if comparable and name != grid.baseline else {}, comparable))
    return Comparison(grid, rows, _notes(grid, results, seeds, rows))


def _clock(run: RunResult) -> tuple[float | None, ...]:
    return tuple(run.metrics.get(name) for name in _CLOCK)


def _row(
    row: Row, grid: Grid, runs: Mapping[int, RunResult], base: Mapping[int, RunResult], comparable: bool
) -> RowResult:
    values, differences = {}, {}
    for name in grid.metrics:
        mine = {seed: run.metrics[name] for seed, run in runs.items() if name in run.metrics}
        if mine:
            values[name] = estimate(list(mine.values()))
        pairs = [
            value - base[seed].metrics[name]
            for seed, value in mine.items()
            if seed in base and name in base[seed].metrics
        ]
        if pairs:
            differences[name] = estimate(pairs)
    return RowResult(row, {seed: run.metrics for seed, run in runs.items()}, values, differences, comparable)


def _notes(
    grid: Grid, results: Mapping[str, Mapping[int, RunResult]], seeds: Sequence[int], rows: Sequence[RowResult]
) -> list[str]:
    notes = []
    if not results.get(grid.baseline):
        notes.append(f"The baseline {grid.baseline} has no finished run: differences are missing.")
    else:
        notes += [_not_comparable(grid, result) for result in rows if not result.comparable]
    for name, row in grid.rows.items():
        missing = [str(seed) for seed in seeds if seed not in results.get(name, {})]
        if missing:
            notes.append(f"{name}: no finished run for seed {', '.join(missing)}.")
        if row.start is not None:
            notes.append(f"{name} starts from the weights of {row.start}, whose tokens come on top of its own.")
        notes += [f"{name}: when training began nothing had read {key}." for key in _unread(row, results.get(name, {}))]
    everything = {name for runs in results.values() for run in runs.values() for name in run.metrics}
    if everything:
        unknown = [name for name in grid.metrics if name not in everything]
        notes += [f"No run has the metric {name}{did_you_mean(name, everything)}." for name in unknown]
    revisions = sorted({run.revision or "unknown" for runs in results.values() for run in runs.values()})
    if len(revisions) > 1:
        notes.append(f"The runs were trained by different revisions of the code: {', '.join(revisions)}.")
    return notes


def _not_comparable(grid: Grid, result: RowResult) -> str:
    """Return a note on the tokens that the row read and the baseline did not."""
    clocks = {tuple(metrics.get(name) for name in _CLOCK) for metrics in result.seeds.values()}
    read = " or ".join(
        "an unknown number of tokens" if None in clock else f"{clock[0]:,.0f} tokens in steps of {clock[1]:,.0f}"
        for clock in sorted(clocks, key=str)
    )
    return f"{result.row.name} is not comparable with {grid.baseline}: it read {read}, which the baseline did not."


def _unread(row: Row, runs: Mapping[int, RunResult]) -> list[str]:
    """Return bindings of the row that no module had read, mostly settings of parts that the row does not use."""
    if any(run.read is None for run in runs.values()) or not runs:
        return []
    read = frozenset[str]().union(*(run.read or frozenset() for run in runs.values()))
    keys = [text.partition("=")[0].strip() for text in row.set]
    # Scoped and macro bindings are recorded under the name of their reader.
    return [key for key in keys if "/" not in key and "." in key and key not in read]
