"""Data of the figures as JSON lines: histograms, blocks by LOD, spans. docs/figures.md describes the keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mcframe.context.step_histograms import HISTOGRAMS
from mcframe.hookspecs import Histogram
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.jsonl_logger import parse, supersede

PICTURES = "pictures.jsonl"
SUPERSEDED = "pictures.superseded.jsonl"
_DIGITS = 4
_BY_LOD = ("mc/lens_score", "mc/entry_delta", "mc/blocks/variants", "mc/blocks/lens")
"""Counts with a row for each LOD: `mc/lens_score/0` is the first row of `mc/lens_score`."""


class PictureRecord:
    """Appends a line for each logging interval and each validation to `pictures.jsonl`.

    On resumption, lines after that point move to `pictures.superseded.jsonl`.
    """

    def __init__(self, directory: Path, resume_tokens: int | None) -> None:
        self.path = directory / PICTURES
        supersede(self.path, directory / SUPERSEDED, resume_tokens)

    def write(self, tokens: int, step: int, reading: Reading) -> None:
        """Append one line."""
        line = {
            "tokens": tokens,
            "step": step,
            "time": round(time.time(), 3),
            "counts": {name: row.tolist() for name, row in rows(reading.counts).items() if row.any()},
            "edges": {name: HISTOGRAMS[name].edges for name in reading.counts if name in HISTOGRAMS},
            "points": {name: points.round(_DIGITS).tolist() for name, points in reading.points.items()},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def readings(path: Path) -> Iterator[tuple[int, int, Reading]]:
    """Yield (tokens, step, reading) of every complete line; nothing if the file is missing."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            entry = parse(line)
            if entry is None:  # truncated by a crash, or not yet complete
                continue
            with suppress(KeyError, TypeError, AttributeError, ValueError):  # written by another tool
                reading = _reading(entry)
                yield entry["tokens"], entry["step"], reading


def rows(counts: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.int64]]:
    """Return each row of counts under a name of its own: `mc/lens_score/1` for LOD1, `mc/variant_delta`."""
    return {
        f"{name}/{lod}" if name in _BY_LOD else name: row
        for name, table in counts.items()
        for lod, row in enumerate(table)
    }


def histograms(reading: Reading) -> dict[str, Histogram]:
    """Return the histograms of a reading that are not empty, by the names of `rows`."""
    return {
        row: Histogram(HISTOGRAMS[name].edges, counts.tolist())
        for name in reading.counts.keys() & HISTOGRAMS.keys()
        for row, counts in rows({name: reading.counts[name]}).items()
        if counts.any()
    }


def _reading(entry: Mapping[str, Any]) -> Reading:
    """Return the reading of a line. Rows of zeros, which are not written, are restored below the highest row."""
    tables: dict[str, dict[int, list[int]]] = {}
    for name, row in entry["counts"].items():
        base, _, lod = name.rpartition("/")
        if base in _BY_LOD:
            tables.setdefault(base, {})[int(lod)] = row
        else:
            tables[name] = {0: row}
    counts = {}
    for name, table in tables.items():
        counts[name] = np.zeros((max(table) + 1, len(next(iter(table.values())))), np.int64)
        counts[name][list(table)] = list(table.values())
    points = {name: np.asarray(rows, np.float64).reshape(len(rows), -1) for name, rows in entry["points"].items()}
    return Reading(counts=counts, points=points)
