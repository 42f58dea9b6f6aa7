"""The pictures that a run draws while it trains, drawn from its record for the steps under review."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from mcframe.context.context_tree import ContextTree
from mcframe.metrics.figure_data import PICTURES, readings
from mcframe.metrics.figures import Image, pictures
from mcframe.metrics.history import History
from mcframe.review.document import Part, Picture
from mcframe.review.record import Record
from mcframe.review.run_facts import number

_TITLES = {
    "contexts": "How often each block is compressed, by place in the window and time",
    "lens": "LensNet's scores over time, and of single spans against what was measured",
    "gist_cost": "How ΔNLL is distributed, over time",
}
_SHAPE = ("window", "block_size", "levels", "slots", "tail", "sink")


def drawn(run: Record) -> dict[str, list[Part]]:
    """Its pictures by name; none where the run recorded nothing for it, or the run's shape is unknown."""
    tree = _geometry(run.config)
    file = run.directory / PICTURES
    if tree is None or not file.exists():
        return {}
    label = f"{run.name}, {run.tokens[1]:,} tokens"
    return {
        name: [Picture(f"drawn_{name}", _TITLES[name], "", _png(image))]
        for name, image in pictures(_history(file, run), tree, label)
    }


def _history(file: Path, run: Record) -> History:
    history = History()
    for tokens, step, reading in readings(file):
        if run.steps[0] <= step <= run.steps[1]:
            history.add(tokens, reading)
    return history


def _geometry(config: Mapping[str, str]) -> ContextTree | None:
    values = [number(config, f"context.{key}") for key in _SHAPE]
    known = [int(value) for value in values if value is not None]
    return ContextTree(*known) if len(known) == len(_SHAPE) else None


def _png(image: Image) -> bytes:
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, image, format="png")
    return out.getvalue()
