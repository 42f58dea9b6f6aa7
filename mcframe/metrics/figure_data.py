"""What pictures are drawn from, as JSON lines: distributions, detail by place, spans."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mcframe.context.step_histograms import SCALES
from mcframe.hookspecs import Histogram
from mcframe.metrics.jsonl_logger import supersede
from mcframe.metrics.tally import Reading

PICTURES = "pictures.jsonl"
SUPERSEDED = "pictures.superseded.jsonl"
_DIGITS = 4
_LEVELLED = ("mc/lens_score", "mc/entry_delta", "mc/blocks/variants", "mc/blocks/lens")
"""Counts that have a row for each LOD: `mc/lens_score/0` is the first of `mc/lens_score`."""


class PictureRecord:
    """Appends a line a logging interval, and one a validation, to `pictures.jsonl`; docs/figures.md describes them.

    On resumption lines behind that point move to `pictures.superseded.jsonl`, as those of metrics do.
    """

    def __init__(self, directory: Path, resume_tokens: int | None) -> None:
        self.path = directory / PICTURES
        supersede(self.path, directory / SUPERSEDED, resume_tokens)

    def write(self, tokens: int, step: int, reading: Reading) -> None:
        """Append one line."""
        counts = {name: row.tolist() for name, row in rows(reading.counts).items() if row.any()}
        line = {
            "tokens": tokens,
            "step": step,
            "time": round(time.time(), 3),
            "counts": counts,
            "edges": {name: SCALES[name].edges for name in reading.counts if name in SCALES},
            "points": {name: points.round(_DIGITS).tolist() for name, points in reading.points.items()},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> Iterator[tuple[int, Reading]]:
        """The lines that are there, one by one: (tokens, reading)."""
        for tokens, _, reading in readings(self.path):
            yield tokens, reading


def readings(path: Path) -> Iterator[tuple[int, int, Reading]]:
    """(tokens, step, reading) of every whole line of a record that may be written to or torn; none without a file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:  # a line that a crash has torn, or has yet to be written
                continue
            yield entry["tokens"], entry["step"], _reading(entry)


def rows(counts: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.int64]]:
    """Every row of counts under a name of its own: `mc/lens_score/1` at LOD1; `mc/variant_delta` has only one."""
    return {
        f"{name}/{number}" if name in _LEVELLED else name: row
        for name, table in counts.items()
        for number, row in enumerate(table)
    }


def histograms(reading: Reading) -> dict[str, Histogram]:
    """The distributions of a reading that hold anything, by the names of `rows`."""
    found = {}
    for name in reading.counts.keys() & SCALES.keys():
        for row, counts in rows({name: reading.counts[name]}).items():
            if counts.any():
                found[row] = Histogram(SCALES[name].edges, counts.tolist())
    return found


def _reading(entry: Mapping[str, Any]) -> Reading:
    """What `write` was given; rows of nothing but zeros below the highest that is there come back as such."""
    tables: dict[str, dict[int, list[int]]] = {}
    for name, row in entry["counts"].items():
        base, _, number = name.rpartition("/")
        levelled = base in _LEVELLED
        tables.setdefault(base if levelled else name, {})[int(number) if levelled else 0] = row
    counts = {}
    for name, table in tables.items():
        counts[name] = np.zeros((max(table) + 1, len(next(iter(table.values())))), np.int64)
        for number, row in table.items():
            counts[name][number] = row
    points = {name: np.asarray(rows, np.float64).reshape(len(rows), -1) for name, rows in entry["points"].items()}
    return Reading(counts, points)
