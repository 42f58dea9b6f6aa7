"""The table of the matrix: printed, and kept as JSON and Markdown."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mcframe import __version__
from mcframe.testing.matrix import Row

COLUMNS = ("plug-in", "package", "passed", "failed", "skipped", "seconds", "smoke loss")


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    if row.left_out:
        return (row.name, row.package, "left out", "", "", "", row.error)
    counts = (str(len(row.of("passed"))), _failed(row), str(len(row.of("skipped")) + len(row.of("known failure"))))
    if not row.results:
        counts = ("", "failed" if row.failed else "", "")
    loss = "" if row.loss is None else f"{row.loss:.3f}"
    return (row.name, row.package, *counts, f"{row.seconds:.1f}", loss)


def _failed(row: Row) -> str:
    failed = [each.clause for each in row.of("failed")]
    return f"{len(failed)}: {', '.join(failed)}" if failed else "0"


def complaints(rows: Sequence[Row]) -> list[str]:
    """What is wrong, a line a finding."""
    found = []
    for row in rows:
        if row.error and not row.left_out:
            found.append(f"{row.name}: {row.error}")
        found += [f"{row.name} breaks {each.clause}, {each.title}: {each.message}" for each in row.of("failed")]
    return found


def write(folder: Path, rows: Sequence[Row], seconds: float) -> tuple[Path, Path]:
    """Keep `matrix.json` and `matrix.md` in a folder. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "mcframe": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "machine": platform.machine(), "seconds": round(seconds, 1), "rows": [_facts(row) for row in rows],
    }  # fmt: skip
    data, page = folder / "matrix.json", folder / "matrix.md"
    data.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    page.write_text(markdown(rows, seconds), "utf-8")
    return data, page


def markdown(rows: Sequence[Row], seconds: float) -> str:
    """The table, and below it what is wrong."""
    lines = [" | ".join(("", *COLUMNS, "")).strip(), "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in cells(row))} |" for row in rows]
    about = f"Python {platform.python_version()}, torch {torch.__version__}, {seconds:.0f} s"
    wrong = [f"- {' '.join(each.split())}" for each in complaints(rows)]
    return "\n".join([f"# Plug-ins, {about}", "", *lines, *(["", "## Failed", "", *wrong] if wrong else [])]) + "\n"


def _facts(row: Row) -> dict[str, Any]:
    return {
        "name": row.name, "package": row.package, "left_out": row.left_out, "failed": row.failed, "error": row.error,
        "passed": len(row.of("passed")), "skipped": len(row.of("skipped")), "smoke_loss": row.loss,
        "seconds": round(row.seconds, 2), "results": [asdict(each) for each in row.results],
    }  # fmt: skip
