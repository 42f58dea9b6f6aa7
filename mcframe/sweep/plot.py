"""Draw a comparison as dots and intervals: a panel a metric, a line a row."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mcframe.sweep.intervals import LEVEL, Estimate
from mcframe.sweep.results import Comparison, RowResult
from mcframe.sweep.table import better, figure, unit

_PANELS_ABREAST = 3
_ROW_INCHES, _PANEL_INCHES = 0.34, 3.3
_LEGEND = f"dot: mean over seeds   tick: a seed   line: {100 * LEVEL:g} % interval, clipped to the panel"
_DOT, _SEED, _BASELINE = "#1f5fa8", "#9db8d6", "#555555"


def draw(comparison: Comparison, file: Path) -> None:
    """Write a PNG of the differences from the baseline row, whose line is at 0, or of plain values without one."""
    names = comparison.metrics
    columns = min(_PANELS_ABREAST, len(names))
    lines = math.ceil(len(names) / columns)
    labels = [result.row.name for result in comparison.rows]
    margin = 0.085 * max(map(len, labels)) + 0.3
    # pyplot would keep the figure in its global state.
    sheet = Figure(
        figsize=(_PANEL_INCHES * columns + margin, lines * (_ROW_INCHES * len(labels) + 1.15)), layout="constrained"
    )
    axes = sheet.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        _panel(axis, comparison, name)
    axes[0, 0].set_yticks(range(len(labels)), labels)
    sheet.supxlabel(_LEGEND, fontsize=8, color=_BASELINE)
    sheet.savefig(file, dpi=150)


def _panel(axis: Axes, comparison: Comparison, name: str) -> None:
    base = next((row for row in comparison.rows if row.row.name == comparison.grid.baseline), None)
    reference = base.values.get(name) if base else None
    paired = reference is not None and any(name in row.differences for row in comparison.rows)
    shown: list[float] = []
    for height, result in enumerate(comparison.rows):
        dots = _seeds(result, base, name, paired)
        middle = _middle(result, base, name, paired)
        axis.plot(dots, [height] * len(dots), "|", color=_SEED, markersize=9, zorder=2)
        if middle is not None:
            axis.errorbar(middle.mean, height, xerr=middle.half, fmt="o", color=_DOT, capsize=3, zorder=3)
        shown += dots
    if paired:
        axis.axvline(0.0, color=_BASELINE, linewidth=1, linestyle="--", zorder=1)
        shown.append(0.0)
    _limit(axis, shown)
    axis.set_ylim(len(comparison.rows) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.3)
    axis.locator_params(axis="x", nbins=4)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel(_caption(comparison, name, reference if paired else None), fontsize=8)


def _seeds(result: RowResult, base: RowResult | None, name: str, paired: bool) -> list[float]:
    """Return each seed's difference from the baseline with that seed, or its value."""
    if not paired:
        return [metrics[name] for metrics in result.seeds.values() if name in metrics]
    if base is None or not result.comparable or result is base:
        return []
    return [
        metrics[name] - base.seeds[seed][name]
        for seed, metrics in result.seeds.items()
        if name in metrics and name in base.seeds.get(seed, {})
    ]


def _middle(result: RowResult, base: RowResult | None, name: str, paired: bool) -> Estimate | None:
    if not paired:
        return result.values.get(name)
    return Estimate(0.0, None, 1) if result is base else result.differences.get(name)


def _limit(axis: Axes, shown: list[float]) -> None:
    """Set the range by the measured values. An interval of two seeds may be many times wider, and is clipped."""
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    spread = (high - low) or abs(high) or 1.0
    axis.set_xlim(low - 0.5 * spread, high + 0.5 * spread)


def _caption(comparison: Comparison, name: str, reference: Estimate | None) -> str:
    direction = {"lower": "← better", "higher": "better →", "neither": ""}[better(name)]
    of = unit(name) if unit(name) != "1" else ""
    if reference is None:
        return "   ".join(part for part in (of, direction) if part)
    text = f"less {comparison.grid.baseline} ({figure(reference.mean)}{' ' if of else ''}{of})"
    return f"{text}\n{direction}" if direction else text
