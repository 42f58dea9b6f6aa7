"""Write a comparison as a page of Markdown and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from mcframe.metrics.catalogue import describe
from mcframe.sweep.intervals import LEVEL, Estimate
from mcframe.sweep.results import Comparison, RowResult

PICTURE, PAGE, DATA = "sweep.png", "sweep.md", "sweep.json"
_NOTHING = "–"


def page(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    grid, metrics = comparison.grid, comparison.metrics
    compared = len(grid.rows) > 1
    header = ["row", "set"]
    for name in metrics:
        header += [_title(name), f"less {grid.baseline}"] if compared else [_title(name)]
    body = [_cells(comparison, row, compared) for row in comparison.rows]
    lines = [f"# {grid.file.stem}", "", _preamble(comparison), ""]
    lines += [_line(header), _line(["---"] * len(header)), *map(_line, body)]
    if comparison.notes:
        lines += ["", *(f"- {note}" for note in comparison.notes)]
    if metrics:
        lines += ["", f"![the same as a figure]({PICTURE})"]
    return "\n".join([*lines, ""])


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain values, with every metric of every run."""
    grid = comparison.grid
    return {
        "grid": str(grid.file), "gin": list(grid.gin), "set": list(grid.set), "tokens": grid.tokens,
        "baseline": grid.baseline, "metrics": list(grid.metrics), "level": LEVEL, "notes": list(comparison.notes),
        "rows": [
            {
                "name": result.row.name, "set": list(result.row.set), "from": result.row.start,
                "comparable": result.comparable,
                "values": {name: asdict(value) for name, value in result.values.items()},
                "differences": {name: asdict(value) for name, value in result.differences.items()},
                "seeds": {str(seed): dict(metrics) for seed, metrics in result.seeds.items()},
            }
            for result in comparison.rows
        ],
    }  # fmt: skip


def unit(name: str) -> str:
    """Return the unit of a metric, or "" if the catalogue does not have it."""
    try:
        return describe(name).unit
    except KeyError:
        return ""


def better(name: str) -> str:
    """Return which value is better: lower, higher or neither, also if the catalogue does not have the metric."""
    try:
        return describe(name).better
    except KeyError:
        return "neither"


def figure(value: float, *, sign: bool = False) -> str:
    """Return a number as text for a table, with three digits or more."""
    plus = "+" if sign else ""
    if value and abs(value) < 1e-3:
        return f"{value:{plus}.2e}"
    if abs(value) >= 1000:
        return f"{value:{plus},.0f}"
    return f"{value:{plus}.{4 if abs(value) >= 1e-2 or not value else 5}f}"


def _preamble(comparison: Comparison) -> str:
    grid = comparison.grid
    # Seeds with finished runs, which the planned seeds may not all have.
    seeds = sorted({seed for row in comparison.rows for seed in row.seeds})
    base = ", ".join(f"`{name}`" for name in grid.gin)
    shared = f" with {_code(grid.set)}" if grid.set else ""
    averaged = f"; `train/` and `mc/` are means over the last {100 * grid.average:g} % of training"
    return (
        f"{base}{shared}; {grid.tokens:,} tokens a run; seeds {', '.join(map(str, seeds)) or 'none'}. Means over seeds "
        f"with {100 * LEVEL:g} % t-intervals, where there are two seeds or more; differences are paired by seed, bold "
        f"where the interval excludes 0{averaged}."
    )


def _cells(comparison: Comparison, result: RowResult, compared: bool) -> list[str]:
    grid = comparison.grid
    start = [f"from {result.row.start}"] if result.row.start else []
    cells = [
        result.row.name + ("" if result.comparable else " †"),
        "<br>".join([*start, *(_code([binding]) for binding in result.row.set)]) or _NOTHING,
    ]
    for name in comparison.metrics:
        value, difference = result.values.get(name), result.differences.get(name)
        cells.append(_NOTHING if value is None else _counted(value, len(result.seeds)))
        if not compared:
            continue
        if result.row.name == grid.baseline:
            cells.append("baseline")
        elif not result.comparable:
            cells.append("not comparable")
        else:
            cells.append(_NOTHING if difference is None else _difference(difference, len(result.seeds)))
    return cells


def shown(value: Estimate, *, sign: bool = False) -> str:
    """Return a mean and its interval, both to the third digit of the interval."""
    if not value.half:
        return figure(value.mean, sign=sign) + ("" if value.half is None else " ± 0")
    digits = min(8, max(0, 2 - math.floor(math.log10(value.half))))
    return f"{value.mean:{'+' if sign else ''},.{digits}f} ± {value.half:,.{digits}f}"


def _counted(value: Estimate, seeds: int, *, sign: bool = False) -> str:
    """Return the same with the number of seeds, if they are fewer than the row's."""
    text = shown(value, sign=sign)
    return text if value.n == seeds else f"{text} (n = {value.n})"


def _difference(value: Estimate, seeds: int) -> str:
    text = _counted(value, seeds, sign=True)
    return f"**{text}**" if value.clear else text


def _title(name: str) -> str:
    return f"`{name}`" + (f" ({unit(name)})" if unit(name) not in ("", "1") else "")


def _code(bindings: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"`{' '.join(binding.split())}`" for binding in bindings)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
