"""Figures of a run: compressed blocks, LensNet's scores, and the cost of gists, over time.

Colours are safe for colour-blind readers: cividis, and the palette of Okabe and Ito (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mcframe.context.context_tree import ContextTree
from mcframe.context.step_histograms import HISTOGRAMS
from mcframe.metrics.history import History
from mcframe.registry.attribution import last_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_DPI = 110
_WIDTH = 9.6
# Inches. A layout computed by matplotlib would take longer than the drawing.
_LEFT, _TOP, _BOTTOM = 0.7, 0.57, 0.5
_BAR, _BAR_WIDTH, _BAR_LABELS = 0.1, 0.14, 0.72
_COLUMN_GAP, _ROW_GAP = 0.25, 0.34
_SCATTER_LEFT, _SCATTER_WIDTH = 0.68, 2.5
_MAP = "cividis"
_COLORS = ("#56606b", "#0072b2", "#d55e00", "#009e73")
_MARKERS = ("o", "o", "s", "^")
_NATS_TICKS = (-10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10)
_STYLE: dict[Any, Any] = {
    "font.size": 9.0, "axes.titlesize": 9.5, "figure.titlesize": 11.0,
    "axes.titley": 1.0,  # otherwise matplotlib measures all labels of an axis to put its title above them
}  # fmt: skip
_SOURCES = {"mc/blocks/variants": "variants in training", "mc/blocks/lens": "LensNet's focus on held-out windows"}
_SCORES, _DELTAS, _VARIANTS = "mc/lens_score", "mc/entry_delta", "mc/variant_delta"


def pictures(history: History, tree: ContextTree, run: str) -> Iterator[tuple[str, Image]]:
    """Yield the name and the pixels [height, width, 3] of every figure that has data.

    A figure that cannot be drawn costs a warning, because neither training nor a review depends on it.

    Args:
        history: readings of the run.
        tree: the tree of the window.
        run: the name of the run, for the titles.
    """
    # Imported here, because it takes most of a second; without pyplot, which requires a display.
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        for name, draw in (("contexts", _contexts), ("lens", _lens), ("gist_cost", _gist_cost)):
            try:
                if (figure := draw(history, tree, run)) is None:
                    continue
                image = _pixels(figure)
            except Exception as error:  # noqa: BLE001 - a library may raise any exception
                _log.warning("figure %s cannot be drawn: %s", name, last_line(error))
                continue
            yield name, image


def _contexts(history: History, tree: ContextTree, run: str) -> Figure | None:
    """Draw the compressed blocks over time: a column for variants and LensNet, a row for each LOD."""
    # After a resumption with other blocks, rows of the earlier blocks remain until the first new reading.
    shown = [name for name in _SOURCES if history.table(name, 0)[1].shape[1] == tree.blocks]
    if not shown:
        return None
    lods = range(1, tree.levels + 1)
    figure = _figure(0.9 + 2.9 * len(lods), "How often a block of the window is compressed", run)
    grid = _panels(figure, len(lods), len(shown), sharex=True, sharey=True)
    positions: Floats = np.arange(tree.blocks + 1, dtype=np.float64) * tree.block_size
    for axes, lod in zip(grid, lods, strict=True):
        tables = [_fraction_of_contexts(history, name, lod) for name in shown]
        norm = _norm(tables, power=1.0)
        for axis, name, table in zip(axes, shown, tables, strict=True):
            mesh = _mesh(axis, positions, _bounds(history.table(name, lod)[0]), table, norm)
            axis.axvline(tree.cursor, color="white", linestyle=":", linewidth=1.4)
            axis.set_title(f"{_SOURCES[name]}: in a gist of LOD{lod}")
        _colorbar(figure, mesh, axes, "fraction of contexts")
        axes[0].set_ylabel("dataset tokens")
        _format_thousands(axes[0].yaxis)
    grid[0, 0].invert_yaxis()  # time runs downwards, as in a log
    for axis in grid[-1]:
        axis.set_xlabel("position in the window (tokens); dotted: the cursor")
    return figure


def _lens(history: History, tree: ContextTree, run: str) -> Figure | None:
    """Draw LensNet's scores over time by LOD, and the scores of the newest spans against the cost of their gists."""
    shown = [(_SCORES, lod, _entries(lod)) for lod in range(tree.levels + 1) if history.table(_SCORES, lod)[1].any()]
    if not shown:
        return None
    figure = _figure(3.5, "LensNet's scores", run)
    panels = _panels(figure, 1, len(shown), right=_SCATTER_LEFT + _SCATTER_WIDTH)[0]
    row, left = panels[0].get_position(), _WIDTH - _SCATTER_WIDTH - 0.1
    scatter = figure.add_axes((left / _WIDTH, row.y0, _SCATTER_WIDTH / _WIDTH, row.height))
    _over_time(figure, panels, history, shown, "fraction of entries")
    for axis in panels[1:]:
        axis.sharey(panels[0])
        axis.tick_params(labelleft=False)
    panels[0].set_ylabel("score; above 0: expand")
    _spans(scatter, history.points.get("mc/spans", np.zeros((0, 3))))
    return figure


def _gist_cost(history: History, tree: ContextTree, run: str) -> Figure | None:
    """Draw histograms of ΔNLL over time: of variants, of gist entries by LOD, and of the raw tokens after a gist."""
    series = [(_VARIANTS, 0, "mean of a variant")]
    series += [(_DELTAS, lod, _entries(lod)) for lod in range(1, tree.levels + 1)]
    series += [(_DELTAS, 0, "raw tokens after a gist")]
    shown = [each for each in series if history.table(each[0], each[1])[1].any()]
    if not shown:
        return None
    figure = _figure(3.5, "ΔNLL: loss of compressed contexts against the full context", run)
    panels = _panels(figure, 1, len(shown), sharey=True)[0]
    _over_time(figure, panels, history, shown, "fraction")
    bins = HISTOGRAMS[_DELTAS]
    low, high = _central_range([history.table(name, row)[1].sum(axis=0) for name, row, _ in shown], bins.edges)
    axis = panels[0]
    axis.set_yscale("asinh", linear_width=bins.linear_width)
    axis.set_yticks([tick for tick in _NATS_TICKS if low <= tick <= high])
    axis.set_yticks([], minor=True)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(low, high)
    axis.set_ylabel("ΔNLL (nats); above 0: worse")
    return figure


def _spans(axis: Axes, points: Floats) -> None:
    """Draw the scores of spans against the ΔNLL of the tokens after them; points [n, 3]: score, ΔNLL, LOD."""
    axis.set_xlabel("ΔNLL after the span (nats)")
    axis.set_ylabel("score of its gist")
    axis.set_title(f"newest {len(points):,} spans")
    if not len(points):
        return
    score, delta, levels = points.T
    for lod in np.unique(levels).astype(int):
        at, style = levels == lod, min(lod, len(_COLORS) - 1)
        axis.scatter(
            delta[at], score[at], 9, color=_COLORS[style], marker=_MARKERS[style], alpha=0.45, linewidths=0,
            label=f"LOD{lod}",
        )  # fmt: skip
    low, high = np.percentile(delta, [1, 99])
    margin = 0.05 * max(high - low, 1e-3)
    axis.set_xlim(low - margin, high + margin)
    axis.axhline(0, color="#888888", linestyle=":", linewidth=1)
    axis.axvline(0, color="#888888", linestyle=":", linewidth=1)
    axis.grid(alpha=0.25)
    if delta.std() > 0 and score.std() > 0:
        axis.set_title(f"newest {len(points):,} spans: r = {np.corrcoef(delta, score)[0, 1]:+.2f}")
    axis.legend(fontsize=8, framealpha=0.7, loc="best", handletextpad=0.2)


def _over_time(
    figure: Figure, panels: Sequence[Axes], history: History, shown: Sequence[tuple[str, int, str]], label: str
) -> None:
    """Draw a panel for each (name, row, title): the histogram at each time, with one colour scale for all panels."""
    tables = [history.table(name, row)[1] for name, row, _ in shown]
    fractions = [counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in tables]
    norm = _norm(fractions)
    for axis, (name, row, title), table in zip(panels, shown, fractions, strict=True):
        times = _bounds(history.table(name, row)[0])
        mesh = _mesh(axis, times, np.asarray(HISTOGRAMS[name].edges), table.T, norm)
        axis.axhline(0, color="white", linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("dataset tokens")
        _format_thousands(axis.xaxis, 4 if len(panels) < 4 else 2)
    _colorbar(figure, mesh, panels, label)


def _fraction_of_contexts(history: History, name: str, lod: int) -> Floats:
    """Return the fraction of contexts that have each block at this LOD [n, blocks]."""
    # Every context has each block at one LOD, so the counts of the first block add up to the number of contexts.
    contexts = np.array([row.counts[:, 0].sum() for row in history.rows[name]])
    fractions: Floats = history.table(name, lod)[1] / np.maximum(contexts, 1)[:, None]
    return fractions


def _figure(height: float, title: str, run: str) -> Figure:
    from matplotlib.figure import Figure as New

    figure = New(figsize=(_WIDTH, height), dpi=_DPI)
    # The name of a folder may contain `$`.
    figure.suptitle(f"{title} ({run})", y=1 - 0.06 / height, parse_math=False)
    return figure


def _panels(figure: Figure, rows: int, columns: int, right: float = 0.0, **shared: Any) -> npt.NDArray[np.object_]:
    """Return panels [rows, columns] with room for a colour bar, and `right` inches after it."""
    height = figure.get_figheight()
    wide = _WIDTH - _LEFT - _BAR - _BAR_WIDTH - _BAR_LABELS - right
    high = height - _TOP - _BOTTOM
    space = {
        "left": _LEFT / _WIDTH, "right": (_LEFT + wide) / _WIDTH, "bottom": _BOTTOM / height, "top": 1 - _TOP / height,
        "wspace": columns * _COLUMN_GAP / (wide - (columns - 1) * _COLUMN_GAP),
        "hspace": rows * _ROW_GAP / (high - (rows - 1) * _ROW_GAP),
    }  # fmt: skip
    panels: npt.NDArray[np.object_] = figure.subplots(rows, columns, squeeze=False, gridspec_kw=space, **shared)
    return panels


def _pixels(figure: Figure) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3])


def _norm(fractions: Sequence[Floats], power: float = 0.5) -> Any:
    """Return a colour scale from 0 up; by the square root, which makes rare values visible."""
    from matplotlib.colors import PowerNorm

    highest = max((float(np.percentile(table, 99.8)) for table in fractions if table.size), default=0.0)
    return PowerNorm(power, vmin=0, vmax=highest or 1.0, clip=True)


def _mesh(axis: Axes, x: Floats, y: Floats, values: Floats, norm: Any) -> Any:
    """Draw values [len(y) - 1, len(x) - 1] as colours."""
    axis.set_facecolor("#dddddd")
    return axis.pcolormesh(x, y, values, cmap=_MAP, norm=norm, rasterized=True)


def _colorbar(figure: Figure, mesh: Any, panels: Sequence[Axes], label: str) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    ticks = [tick for tick in MaxNLocator(5).tick_values(0, mesh.norm.vmax) if tick <= mesh.norm.vmax]
    last = panels[-1].get_position()
    bar_axes = figure.add_axes((last.x1 + _BAR / _WIDTH, last.y0, _BAR_WIDTH / _WIDTH, last.height))
    bar = figure.colorbar(mesh, cax=bar_axes, label=label, ticks=ticks)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _bounds(ends: npt.NDArray[np.int64]) -> Floats:
    """Return start and end of each time; a reading at 0 tokens gets a small width to be visible."""
    bounds = np.concatenate([[0.0], ends.astype(np.float64)])
    if len(bounds) > 1 and bounds[1] == 0:
        bounds[0] = -0.02 * max(float(bounds[-1]), 1.0)
    return bounds


def _central_range(totals: Sequence[npt.NDArray[np.int64]], edges: Sequence[float]) -> tuple[float, float]:
    """Return the range of an axis without the outer thousandth at either end."""
    fraction = np.sum([total / max(1, total.sum()) for total in totals], axis=0)
    running = np.cumsum(fraction) / fraction.sum()
    low, high = int(np.searchsorted(running, 0.001)), int(np.searchsorted(running, 0.999))
    return min(edges[low], -0.1), max(edges[min(high, len(edges) - 2) + 1], 0.1)


def _entries(lod: int) -> str:
    return "raw tokens" if lod == 0 else f"gists of LOD{lod}"


def _format_thousands(axis: Axis, intervals: int = 4) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(intervals))
    axis.set_major_formatter(EngFormatter(sep=""))
