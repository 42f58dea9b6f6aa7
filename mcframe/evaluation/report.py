"""Report of an evaluation: tables in the terminal, `eval.json`, charts; and the common parts of both evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mcframe.errors import UserError
from mcframe.evaluation.document_means import FEWEST_DOCUMENTS
from mcframe.evaluation.plots import draw
from mcframe.files import replaced
from mcframe.hookspecs import EvalResult, Interval, Table
from mcframe.metrics.tables import FittedTable

JSON = "eval.json"
MANY_DOCUMENTS = 30
"""Documents below which a note warns of wide intervals."""


def show(result: EvalResult, console: Console) -> None:
    """Print tables, conclusions and notes."""
    for table in result.tables:
        for part in as_rich(table, console.width):
            console.print(part, highlight=False)
    for sentence in result.conclusions:
        console.print(f"• {sentence}", highlight=False, markup=False)
    for note in result.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    console.print()


def as_rich(table: Table, width: int) -> list[RichTable]:
    """Return a table for a terminal of this width, numbers to the right.

    No word is broken: if the columns do not fit, they are divided among several tables, each with the first column.
    """
    cells = [[column, *(cell_text(row[at]) for row in table.rows)] for at, column in enumerate(table.columns)]
    needed = [max(len(word) for cell in column for word in (cell.split() or [""])) + 2 for column in cells]
    parts: list[list[int]] = [[0]]
    for at in range(1, len(cells)):
        if len(parts[-1]) > 1 and sum(needed[column] for column in (*parts[-1], at)) > width:
            parts.append([0])
        parts[-1].append(at)
    found: list[RichTable] = []
    for part in parts:
        title = Text(table.title if part is parts[0] else f"{table.title}, continued")
        fits = sum(needed[at] for at in part) <= width
        rich = (RichTable if fits else FittedTable)(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for at in part:
            texts = any(isinstance(row[at], str) and not _numeric(row[at]) for row in table.rows)
            rich.add_column(Text(cells[at][0]), justify="left" if texts else "right", min_width=needed[at] - 2)
        for row in zip(*(cells[at][1:] for at in part), strict=True):
            rich.add_row(*(Text(cell) for cell in row))
        found.append(rich)
    return found


def _numeric(cell: Any) -> bool:
    return not str(cell) or str(cell)[0] in "+-0123456789"


def cell_text(cell: str | int | float | Interval | None) -> str:
    """Return a cell as text, an interval's bounds below its value; empty for None."""
    if cell is None:
        return ""
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace(" [", "\n[")


def as_metrics(values: Mapping[str, Interval | float]) -> dict[str, float]:
    """Return flat metrics: an interval as three, NAME, NAME_low and NAME_high. Undefined ones are omitted."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        interval = value if isinstance(value, Interval) else Interval(value, math.nan, math.nan)
        ends = {"": interval.value, "_low": interval.low, "_high": interval.high}
        flat |= {f"{name}{end}": each for end, each in ends.items() if math.isfinite(each)}
    return flat


def as_lines(points: Iterable[tuple[float, Mapping[str, Interval]]]) -> dict[str, list[tuple[float, Interval]]]:
    """Return the lines of a chart, name -> [(x, interval)], from the intervals by name at each x."""
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for x, intervals in points:
        for name, interval in intervals.items():
            lines.setdefault(name.replace("_", " "), []).append((x, interval))
    return lines


def enough(documents: int) -> bool:
    """Return whether there are enough documents for a conclusion."""
    return documents >= FEWEST_DOCUMENTS


def no_conclusion(documents: int) -> str:
    """Return the text in place of a conclusion if there are not enough documents."""
    return f"no conclusion: expected {FEWEST_DOCUMENTS} documents or more, got {documents:,}"


def few_documents(name: str, documents: int) -> list[str]:
    """Return a note if there are few documents after the cursor."""
    if documents >= MANY_DOCUMENTS:
        return []
    effect = "intervals are wide"
    if not enough(documents):
        effect = "no conclusions" if documents > 1 else "no intervals and no conclusions"
    targets = f"{documents:,} document{'s' if documents != 1 else ''}"
    return [f"{name}: the targets after the cursor are of {targets}: {effect}; take more windows"]


def per_cent(fraction: float | None) -> str | None:
    """Return `12.3 %`, None for None."""
    return None if fraction is None else f"{100 * fraction:.1f} %"


def write(results: Mapping[str, EvalResult], facts: Mapping[str, Any], out: Path) -> list[Path]:
    """Write `eval.json` and a picture for each chart into `out`, and return their paths.

    The JSON has `metrics`, flat; `run`, the facts; and `evaluations`, with tables, conclusions, notes and the points of
    every picture. A number that is not finite is null.

    Raises:
        UserError: `out` cannot be written.
    """
    metrics = {name: value for each in results.values() for name, value in each.metrics.items()}
    each = {
        name: {"tables": f.tables, "charts": f.charts, "conclusions": f.conclusions, "notes": f.notes}
        for name, f in results.items()
    }
    text = json.dumps(plain({"metrics": metrics, "run": facts, "evaluations": each}), indent=2, ensure_ascii=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replaced(out / JSON) as file:
            file.write_text(text + "\n", "utf-8")
        pictures = [draw(chart, out / f"{chart.name}.png") for f in results.values() for chart in f.charts]
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}", remedy="Pass another folder to --out.") from error
    return [out / JSON, *pictures]


def plain(value: Any) -> Any:
    """Return the value in types of strict JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
