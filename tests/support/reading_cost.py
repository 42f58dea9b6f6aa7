"""Measure the cost of reading a run, for docs/review.md: `python tests/support/reading_cost.py [LINES]`."""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from mcframe.review.record import read_run

METRICS, WORDS = 52, 1000


def main(lines: int) -> None:
    """Write a record of `lines` lines, read it, and print the time and the memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "metrics.jsonl"
        tails = [json.dumps({f"mc/metric_{k}": random.random() for k in range(METRICS)})[1:] for _ in range(WORDS)]
        with file.open("w") as opened:
            for at in range(lines):
                opened.write(f'{{"tokens": {1024 * at}, "step": {at}, "time": {1.7e9 + at}, {tails[at % WORDS]}\n')
        size, before = file.stat().st_size / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        read_run(Path(folder))
        took, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{lines:,} lines of {METRICS} metrics, {size:,.0f} MB: {1e6 * took / lines:.0f} µs of processor time a line,"
    )
    print(f"{(after - before) / 1024:.0f} MB of memory more than the {before / 1024:.0f} MB before")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
