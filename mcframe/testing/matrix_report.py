"""Reports of the matrix: tables of at most 80 columns, JSON and Markdown."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mcframe import __version__
from mcframe.testing.matrix import Row

COLUMNS = ("plug-in", "passed", "failed", "skipped", "s", "loss")


def cells(row: Row) -> tuple[str, ...]:
    """Return one line of the table of plug-ins."""
    if row.skipped:
        return (row.name, "", "", "all", "", "")
    skipped = len(row.of("skipped")) + len(row.of("known failure"))
    counts = (len(row.of("passed")), len(row.of("failed")), skipped)
    return (row.name, *map(str, counts), f"{row.seconds:.0f}", "" if row.loss is None else f"{row.loss:.3f}")


def summary(rows: Sequence[Row], seconds: float) -> list[str]:
    """Return the lines below the table: combinations, skipped plug-ins, failures, and the result."""
    cases = [row for row in rows if not row.package and not row.skipped]
    lines = [f"{sum(not row.failed for row in cases)} of {len(cases)} combinations train"] if cases else []
    lines += [f"{row.name} was skipped: {row.error}" for row in rows if row.skipped]
    lines += [" ".join(failure.split()) for row in rows for failure in row.failures]
    failed = [row.name for row in rows if row.failed]
    result = f"failed: {', '.join(failed)}" if failed else "all conform and train"
    return [*lines, f"{len(rows)} rows in {seconds:.0f} s, {result}"]


def write(folder: Path, rows: Sequence[Row], seconds: float) -> tuple[Path, Path]:
    """Write `matrix.json` and `matrix.md` to a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"mcframe": __version__, "python": platform.python_version(), "torch": torch.__version__}
    facts = [{**asdict(row), "failed": row.failed} for row in rows]
    data, page = folder / "matrix.json", folder / "matrix.md"
    content = {**versions, "machine": platform.machine(), "seconds": round(seconds, 1), "rows": facts}
    data.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    table = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in rows)]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table]
    about = ", ".join(f"{name} {version}" for name, version in versions.items())
    notes = [f"- {line}" for line in summary(rows, seconds)]
    page.write_text("\n".join([f"# Plug-ins ({about})", "", *lines, "", *notes]) + "\n", "utf-8")
    return data, page
