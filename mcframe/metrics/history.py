"""Counts over the time of a run, with a bounded number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcframe.metrics.accumulator import Reading

ROWS = 256
POINTS = 1024

_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Counts of the tokens from the previous row to `tokens`."""

    tokens: int
    counts: _Counts


class History:
    """Readings of a run by name: at most `ROWS` rows of counts, and the newest `POINTS` points, a name."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.points: dict[str, npt.NDArray[np.float64]] = {}

    def add(self, tokens: int, reading: Reading) -> None:
        """Add a reading. Neighbouring rows are merged in pairs when the limit is exceeded.

        A reading of another width (a run that is resumed with other blocks) discards the earlier rows.
        """
        for name, counts in reading.counts.items():
            rows = [row for row in self.rows.get(name, ()) if row.counts.shape[1] == counts.shape[1]]
            rows.append(Row(tokens, counts))
            if len(rows) > ROWS:
                pairs = [rows[at : at + 2] for at in range(0, len(rows), 2)]
                rows = [Row(pair[-1].tokens, _total([row.counts for row in pair])) for pair in pairs]
            self.rows[name] = rows
        for name, points in reading.points.items():
            both = [self.points[name], points] if name in self.points else [points]
            self.points[name] = np.concatenate([part for part in both if part.size] or [points])[-POINTS:]

    def table(self, name: str, row: int) -> tuple[_Counts, _Counts]:
        """Return one row of a name's counts over time: the ends [n] in tokens, and the counts [n, bins]."""
        rows = self.rows.get(name, ())
        counts = [each.counts[row] if row < len(each.counts) else np.zeros_like(each.counts[0]) for each in rows]
        ends = np.array([each.tokens for each in rows], np.int64)
        return ends, np.array(counts, np.int64).reshape(len(rows), -1) if counts else np.zeros((0, 0), np.int64)


def _total(parts: list[_Counts]) -> _Counts:
    """Return the sum of counts of which some have fewer rows."""
    total = np.zeros((max(len(part) for part in parts), parts[0].shape[1]), np.int64)
    for part in parts:
        total[: len(part)] += part
    return total
