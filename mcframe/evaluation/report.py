"""What an evaluation leaves behind: tables in the terminal, `eval.json`, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from mcframe.errors import UserError
from mcframe.evaluation.plots import draw
from mcframe.hookspecs import EvalResult, Interval, Table

JSON = "eval.json"


def show(findings: EvalResult, console: Console) -> None:
    """Print tables, verdicts and notes."""
    for table in findings.tables:
        console.print(as_rich(table), highlight=False)
    for verdict in findings.verdicts:
        console.print(f"• {verdict}", highlight=False, markup=False)
    for note in findings.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    console.print()


def as_rich(table: Table) -> RichTable:
    """For a terminal: numbers to the right, words to the left."""
    rich = RichTable(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        words = any(isinstance(row[index], str) and not _numeric(row[index]) for row in table.rows)
        rich.add_column(column, justify="left" if words else "right", overflow="fold")
    for row in table.rows:
        rich.add_row(*(cell_text(cell) for cell in row))
    return rich


def _numeric(cell: Any) -> bool:
    return not str(cell) or str(cell)[0] in "+-0123456789"


def cell_text(cell: str | int | float | Interval | None) -> str:
    """A cell in words, an interval's bounds below its value; nothing where there is nothing."""
    if cell is None:
        return ""
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace(" [", "\n[")


def write(findings: Mapping[str, EvalResult], facts: Mapping[str, Any], out: Path) -> list[Path]:
    """Write `eval.json` and a picture a chart into `out`; returns their paths.

    The JSON has `metrics`, flat; `run`, what was evaluated; and `evaluations`, with tables, verdicts, notes and the
    points of every picture. A number that is not finite is null. Raises UserError where `out` cannot be written.
    """
    metrics = {name: value for each in findings.values() for name, value in each.metrics.items()}
    each = {
        name: {"tables": f.tables, "charts": f.charts, "verdicts": f.verdicts, "notes": f.notes}
        for name, f in findings.items()
    }
    text = json.dumps(plain({"metrics": metrics, "run": facts, "evaluations": each}), indent=2, ensure_ascii=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / JSON).write_text(text + "\n", "utf-8")
        pictures = [draw(chart, out / f"{chart.name}.png") for f in findings.values() for chart in f.charts]
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}", remedy="name another folder with --out DIR") from error
    return [out / JSON, *pictures]


def plain(value: Any) -> Any:
    """The value in what strict JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
