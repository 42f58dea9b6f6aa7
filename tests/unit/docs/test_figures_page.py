"""docs/figures.md names the histograms, the figures and the keys of the record as in the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import typer

from mcframe.cli.app import app
from mcframe.context.step_histograms import HISTOGRAMS, MAX_POINTS, NATS_BINS, SCORE_BINS
from mcframe.metrics import wandb_workspace
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.figure_data import PICTURES, PictureRecord, rows

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "figures.md").read_text("utf-8")


def test_every_histogram_has_a_row() -> None:
    named = re.findall(r"^\| `(mc/[\w{}/]+)` \| (?:1|nats) \|", PAGE, re.M)
    assert {name.removesuffix("/{lod}") for name in named} == set(HISTOGRAMS)
    assert sorted(named) == sorted(wandb_workspace.HISTOGRAMS)
    numbers = {name: np.zeros((2, bins.bins), np.int64) for name, bins in HISTOGRAMS.items()}
    assert {re.sub(r"/\d$", "/{lod}", name) for name in rows(numbers)} == set(named)


def test_bins_are_those_of_the_code() -> None:
    assert f"Scores have {SCORE_BINS.bins} equal bins" in PAGE
    low, high = f"{NATS_BINS.low:g}", f"{NATS_BINS.high:g}"
    shape = f"{NATS_BINS.bins}, equal in asinh(ΔNLL / {NATS_BINS.linear_width})"
    assert f"ΔNLL has {shape} from {low} to {high} nats" in PAGE
    assert f"up to {MAX_POINTS} collapsed spans" in PAGE


def test_every_key_of_a_line_is_documented(tmp_path: Path) -> None:
    reading = Reading(counts={"mc/lens_score": np.ones((2, 40), np.int64)}, points={"mc/spans": np.zeros((1, 3))})
    PictureRecord(tmp_path, None).write(1, 1, reading)
    line = json.loads((tmp_path / PICTURES).read_text("utf-8"))
    documented = {
        name for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.M) for name in row[1:-1].split("`, `")
    }
    assert set(line) <= documented


def test_every_picture_is_shown() -> None:
    pictures = [name.removeprefix("pictures/") for name in wandb_workspace.PICTURES if name.startswith("pictures/")]
    assert re.findall(r"!\[.+\]\(pictures/(\w+)\.png\)", PAGE) == pictures
    assert all((DOCS / "pictures" / f"{name}.png").stat().st_size < 200_000 for name in pictures)


def test_commands_exist() -> None:
    commands = typer.main.get_command(app).commands["dashboard"].commands  # type: ignore[attr-defined]
    assert set(re.findall(r"mcframe dashboard (\w+)", PAGE)) == set(commands)
