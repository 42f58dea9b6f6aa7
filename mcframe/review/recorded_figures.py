"""The figures that a run draws while it trains, drawn from its record for the steps under review."""

from __future__ import annotations

import io

from mcframe.context.context_tree import ContextTree
from mcframe.metrics.figure_data import PICTURES, readings
from mcframe.metrics.figures import pictures
from mcframe.metrics.history import History
from mcframe.review.document import Picture
from mcframe.review.record import Record
from mcframe.review.run_facts import number

_TITLES = {
    "contexts": "How often each block is compressed, by block of the window and time",
    "lens": "LensNet's scores over time, and of single spans against the measurement",
    "gist_cost": "Distribution of ΔNLL over time",
}
_SHAPE = ("window", "block_size", "levels", "slots", "tail", "sink")


def recorded_figures(run: Record) -> dict[str, Picture]:
    """Return the figures by name; empty if the run recorded none, or the shape of its contexts is unknown."""
    from matplotlib.image import imsave

    shape = [int(value) for key in _SHAPE if (value := number(run.config, f"context.{key}")) is not None]
    file = run.directory / PICTURES
    if len(shape) < len(_SHAPE) or not file.exists():
        return {}
    history = History()
    for tokens, step, reading in readings(file):
        if run.steps[0] <= step <= run.steps[1]:
            history.add(tokens, reading)
    found = {}
    for name, image in pictures(history, ContextTree(*shape), f"{run.name}, {run.tokens[1]:,} tokens"):
        png = io.BytesIO()
        imsave(png, image, format="png")
        found[name] = Picture(f"drawn_{name}", _TITLES[name], "", png.getvalue())
    return found
