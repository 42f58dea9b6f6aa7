"""The history of `mcframe bench`: one line of JSON a setting and measurement, and what has become slower."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mcframe.errors import Location, UserError
from mcframe.metrics.timers import STEP

RATIOS = ("step/baseline", "step/floor", "baseline/floor")
"""The ratios that are compared: both of their times are of one process, so that a busy machine matters little."""
_NEWEST = 5
_IDENTITY = ("file", "digest", "ranks", "clock", "machine", "floor")
"""Fields in which compared rows are equal. Older lines have no `floor`: theirs was the time of matrix products."""


def read_history(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a history; none of a file that does not exist.

    Raises:
        UserError: A line is not a row.
    """
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line.decode("utf-8"))
            row.setdefault("floor", "products")
            _ = [row[name] for name in (*_IDENTITY, "figures", "phases", "revision")]
            if not all(0 < row["figures"][name] < math.inf for name in (*RATIOS, "floor_ms")):
                raise ValueError("a figure that is no number above 0")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "--history: expected lines that `mcframe bench --history` has written, got another one",
                remedy="Remove the line, or name another file.",
                location=Location(file, number),
            ) from error
        rows.append(row)
    return rows


def compare(rows: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
    """Return what is slower than before, as sentences.

    Args:
        rows: The new rows.
        history: Earlier rows, oldest first; those of another machine or setting are not compared.
        tolerance: Fraction by which a ratio may exceed the median of the newest rows before.
    """
    found = []
    for row in rows:
        earlier = [each for each in history if all(each[name] == row[name] for name in _IDENTITY)][-_NEWEST:]
        if not earlier:
            continue
        name, since = f"{row['file']}, {row['case']}", earlier[-1]["revision"] or "the last line"
        slower = False
        for ratio in RATIOS:
            was, now = median(each["figures"][ratio] for each in earlier), row["figures"][ratio]
            if now > was * (1 + tolerance):
                slower = True
                found.append(f"{name}: {ratio} rose from {was:.3f} to {now:.3f} since {since}")
        if slower:
            found += _slower_phases(row, earlier, tolerance, name)
    return found


def _slower_phases(
    row: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], tolerance: float, name: str
) -> list[str]:
    """Return the phases that explain it: those whose time, in floors of the step, rose by the tolerance of a step."""
    found = []
    for timer, ms in row["phases"].items():
        now = ms / row["figures"]["floor_ms"]
        was = median(each["phases"].get(timer, 0.0) / each["figures"]["floor_ms"] for each in earlier)
        step = median(each["figures"]["step/floor"] for each in earlier)
        if timer != STEP and now - was > tolerance * step:
            found.append(f"{name}: of it {timer}, from {was:.3f} to {now:.3f} of the floor")
    return found
