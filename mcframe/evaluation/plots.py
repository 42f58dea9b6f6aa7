"""Charts as PNG files."""

from __future__ import annotations

import math
from pathlib import Path

from mcframe.hookspecs import Chart

_MARKS = "os^Dv<>P*X"


def draw(chart: Chart, path: Path) -> Path:
    """Draw a chart with its 95 % intervals as error bars, and return the path."""
    # Imported late: it takes most of a second. pyplot is not used, because it would open a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(chart.lines.items()):
        x = [at for at, _ in points]
        y = [interval.value for _, interval in points]
        below = [_length(interval.value - interval.low) for _, interval in points]
        above = [_length(interval.high - interval.value) for _, interval in points]
        axes.errorbar(x, y, yerr=(below, above), label=name, marker=_MARKS[index % len(_MARKS)], capsize=3)
    if chart.log_x:
        axes.set_xscale("log", base=2)
    ticks = sorted({at for points in chart.lines.values() for at, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    if any(interval.low < 0 for points in chart.lines.values() for _, interval in points):
        axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    return path


def _length(distance: float) -> float:
    """Return the length of an error bar, 0 for an undefined bound or one on the wrong side by rounding."""
    return 0.0 if math.isnan(distance) else max(0.0, distance)
