"""Counts over a run's time, in as many rows as a picture can show: a long run's rows stand for more tokens each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcframe.metrics.tally import Reading

ROWS = 256
POINTS = 1024


@dataclass(frozen=True)
class Row:
    """Counts of the tokens up to `tokens`, from those of the row before."""

    tokens: int
    counts: npt.NDArray[np.int64]


class History:
    """Readings of a run by name; bounded: `ROWS` rows of counts, and the newest `POINTS` points, a name."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.points: dict[str, npt.NDArray[np.float64]] = {}

    def add(self, tokens: int, reading: Reading) -> None:
        """Take in a reading. Two neighbours become one row wherever there would be too many.

        Rows of another width than the newest are forgotten: a resumed run may have other blocks.
        """
        for name, counts in reading.counts.items():
            known = self.rows.setdefault(name, [])
            if known and known[-1].counts.shape[1] != counts.shape[1]:
                known.clear()
            known.append(Row(tokens, counts))
            if len(known) > ROWS:
                pairs = [known[at : at + 2] for at in range(0, len(known), 2)]
                self.rows[name] = [Row(pair[-1].tokens, _total([row.counts for row in pair])) for pair in pairs]
        for name, points in reading.points.items():
            both = [self.points[name], points] if name in self.points else [points]
            self.points[name] = np.concatenate([part for part in both if part.size] or [points])[-POINTS:]

    def table(self, name: str, row: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of one row of a name's counts over time: where each time ends [n], in tokens, and the counts [n, bins]."""
        known = self.rows.get(name, ())
        ends = np.array([each.tokens for each in known], np.int64)
        counts = [each.counts[row] if row < len(each.counts) else np.zeros_like(each.counts[0]) for each in known]
        return ends, np.array(counts, np.int64).reshape(len(known), -1) if counts else np.zeros((0, 0), np.int64)


def _total(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """The sum of counts that may lack rows at their end."""
    total = np.zeros((max(len(part) for part in parts), parts[0].shape[1]), np.int64)
    for part in parts:
        total[: len(part)] += part
    return total
