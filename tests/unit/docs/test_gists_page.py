"""The picture of docs/gists.md shows the numbers of the page's tables."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "gists.md").read_text("utf-8")
PICTURE = (ROOT / "docs" / "pictures" / "gists.svg").read_text("utf-8")
plot = import_module("benchmarks.gists_plot")


def test_numbers_are_read_from_the_tables() -> None:
    assert plot.recall_accuracy(PAGE)["gist"] == pytest.approx(mean([96.3, 95.4, 99.1]))
    assert plot.text_loss(PAGE)["prose"]["drop"] == pytest.approx(mean([0.1017, 0.0965, 0.1057]))


def test_the_picture_shows_them() -> None:
    labels = [f"{percent:.0f} %" for percent in plot.recall_accuracy(PAGE).values()]
    labels += [f"{nats:.3f}" for losses in plot.text_loss(PAGE).values() for nats in losses.values()]
    missing = [label for label in labels if f">{label}</text>" not in PICTURE]
    assert not missing, "run python benchmarks/gists_plot.py"
