"""Curves by tokens as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape

from mcframe.review.document import Picture
from mcframe.review.finding import Plot
from mcframe.review.record import Record
from mcframe.review.tables import unit_and_meaning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#010203"
"""Colour of text, axes and ticks, replaced by the page's own."""

_COLORS = ("#2f7fd6", "#e0702c", "#2a9d62", "#b55ad1", "#c9a100", "#d9486f", "#5b8c9e", "#8c6d46")
_DASHES = ("-", "--", ":", "-.")
_SIZE = (4.8, 2.9)
_LONG_LABEL = 30
# Inches. A layout computed by matplotlib would take a third of the time of a plot.
_RIGHT, _BOTTOM, _GAP, _LOWEST = 0.18, 0.45, 0.13, 0.55
_CHARACTER, _Y_LABEL, _Y_TICK = 0.084, 0.22, 0.14
_LEGEND_LINE, _LEGEND_PAD = 0.172, 0.08
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.0, "axes.edgecolor": _INK,
    "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "path.simplify": True,
}  # fmt: skip


def draw(plot: Plot, runs: Mapping[str, Record]) -> Picture | None:
    """Draw a plot's metrics in several runs, None if none of them has a point.

    Metrics differ in colour and runs in dashes; with a single metric, runs differ in colour.

    Args:
        plot: the metrics.
        runs: label -> run.
    """
    drawn = dict([next(iter(runs.items()))]) if plot.stacked else runs
    curves = [
        (index, number, name, label, run)
        for index, name in enumerate(plot.metrics)
        for number, (label, run) in enumerate(drawn.items())
        if run.get(name) is not None and len(run.series[name])
    ]
    if not curves:
        return None
    alone = len({label for _, _, _, label, _ in curves}) == 1
    single = len({name for _, _, name, _, _ in curves}) == 1
    # Imported late: it takes most of a second. pyplot is not used, because it would open a display.
    import matplotlib
    from matplotlib.figure import Figure as New

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": plot.name}):
        figure = New(figsize=_SIZE)
        units = list(dict.fromkeys(_unit(name) for _, _, name, _, _ in curves))
        axes = figure.subplots(min(2, len(units)), 1, squeeze=False, sharex=True)[:, 0].tolist()
        if plot.stacked:
            _stack(axes[0], curves[0][-1], [name for _, _, name, _, _ in curves])
        for index, number, name, label, run in () if plot.stacked else curves:
            axis = axes[min(units.index(_unit(name)), len(axes) - 1)]
            _curve(axis, run, name, _label(name, label, alone), *_style(index, number, single))
        _finish(axes, plot, units, next(iter(runs.values())).x)
        _set_positions(figure, axes)
        svg, png = io.StringIO(), io.BytesIO()
        metadata: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
        figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Picture(plot.name, plot.title, _inline(svg.getvalue(), plot.title), png.getvalue())


def _curve(axis: Axes, run: Record, name: str, label: str, color: str, dash: str) -> None:
    series = run.series[name]
    if series.stride > 1:
        axis.fill_between(series.tokens, series.lows, series.highs, color=color, alpha=0.18, linewidth=0)
    marker = "o" if len(series) < 12 else None
    axis.plot(series.tokens, series.means, dash, color=color, label=label, linewidth=1.3, marker=marker, markersize=3)


def _stack(axis: Axes, run: Record, names: Sequence[str]) -> None:
    from matplotlib.colors import to_rgba

    tokens = run.series[names[0]].tokens
    heights = [np.interp(tokens, run.series[name].tokens, run.series[name].means) for name in names]
    colors = [_COLORS[at % len(_COLORS)] for at in range(len(names))]
    # After the end of the palette, colours repeat in a paler shade.
    faces = [to_rgba(color, 0.85 if at < len(_COLORS) else 0.4) for at, color in enumerate(colors)]
    axis.stackplot(tokens, heights, labels=names, colors=faces, linewidth=0)
    axis.margins(x=0)


def _finish(axes: Sequence[Axes], plot: Plot, units: Sequence[str], x: str) -> None:
    from matplotlib.ticker import EngFormatter

    for axis, unit in zip(axes, units, strict=False):
        if plot.shade is not None:
            axis.axvspan(*plot.shade, color="#d9486f", alpha=0.15, linewidth=0)
        axis.grid(alpha=0.25, color="#888888", linewidth=0.6)
        axis.set_ylabel(unit if unit != "1" else "")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        # Above the axes, where it hides no curve.
        labels = axis.get_legend_handles_labels()[1]
        if labels:
            legend = axis.legend(
                fontsize=8, frameon=False, ncols=_columns(labels), loc="lower left", bbox_to_anchor=(0, 1),
                borderaxespad=0.3,
            )  # fmt: skip
            for text in legend.get_texts():
                text.set_parse_math(False)  # a run may be called `$1`
    if plot.line is not None:
        # The limit is that of the last metric.
        axes[-1].axhline(plot.line, color="#888888", linewidth=1.0, linestyle="--")
    axes[-1].set_xlabel(x)


def _columns(labels: Sequence[str]) -> int:
    """Return the number of columns of a legend."""
    return 2 if max(map(len, labels), default=0) <= _LONG_LABEL else 1


def _set_positions(figure: Figure, axes: Sequence[Axes]) -> None:
    """Set axes of equal height below their legends, and make the figure higher if legends fill it."""
    legends = []
    for axis in axes:
        labels = axis.get_legend_handles_labels()[1]
        legends.append(_LEGEND_LINE * math.ceil(len(labels) / _columns(labels)) + _LEGEND_PAD)
    margins = _BOTTOM + sum(legends) + _GAP * (len(axes) - 1)
    each = max(_LOWEST, (_SIZE[1] - margins) / len(axes))
    width, height = _SIZE[0], margins + each * len(axes)
    figure.set_size_inches(width, height)
    bottom, left, bottoms = height, 0.0, []
    for axis, legend_height in zip(axes, legends, strict=True):
        bottom -= legend_height + each
        axis.set_position((0, bottom / height, 1, each / height))  # the number of ticks depends on the height
        ticks = axis.yaxis.get_major_formatter().format_ticks(axis.yaxis.get_majorticklocs().tolist())
        text = _CHARACTER * max(map(len, ticks), default=0)
        left = max(left, _Y_TICK + text + (_Y_LABEL if axis.get_ylabel() else 0))
        bottoms.append(bottom)
        bottom -= _GAP
    for axis, bottom in zip(axes, bottoms, strict=True):
        axis.set_position((left / width, bottom / height, (width - left - _RIGHT) / width, each / height))


def _style(index: int, number: int, single: bool) -> tuple[str, str]:
    if single:
        return _COLORS[number % len(_COLORS)], _DASHES[number // len(_COLORS) % len(_DASHES)]
    return _COLORS[index % len(_COLORS)], _DASHES[number % len(_DASHES)]


def _label(name: str, run: str, alone: bool) -> str:
    return name if alone else f"{name}, {run}"


def _unit(name: str) -> str:
    return unit_and_meaning(name)[0] or ("ms" if name.endswith("_ms") else "1")


def _inline(svg: str, title: str) -> str:
    """Return SVG for a page: without header, metadata, addresses and size, in the page's colour."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href").replace(_INK, "currentColor")
    body = re.sub(r'<svg( [^>]*?)? width="[^"]*"', r"<svg\1", body, count=1)
    body = re.sub(r'<svg( [^>]*?)? height="[^"]*"', r"<svg\1", body, count=1)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1).strip()
