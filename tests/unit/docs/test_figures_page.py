"""docs/figures.md names the distributions, the pictures and the keys of the record as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import typer

from mcframe.cli.app import app
from mcframe.context.step_histograms import NATS, SCALES, SCORES, SPANS
from mcframe.metrics.figure_data import PICTURES, PictureRecord, rows
from mcframe.metrics.tally import Reading
from mcframe.metrics.wandb_workspace import HISTOGRAMS
from mcframe.metrics.wandb_workspace import PICTURES as SHOWN

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "figures.md").read_text("utf-8")


def test_every_distribution_has_a_row() -> None:
    named = re.findall(r"^\| `(mc/[\w{}/]+)` \| (?:1|nats) \|", PAGE, re.M)
    assert {name.removesuffix("/{lod}") for name in named} == set(SCALES)
    assert sorted(named) == sorted(HISTOGRAMS)
    numbers = {name: np.zeros((2, scale.bins), np.int64) for name, scale in SCALES.items()}
    assert {re.sub(r"/\d$", "/{lod}", name) for name in rows(numbers)} == set(named)


def test_bins_are_those_of_the_code() -> None:
    assert f"Scores have {SCORES.bins} equal bins" in PAGE
    assert f"ΔNLL has {NATS.bins}, equal in asinh(ΔNLL / {NATS.fine}) from {NATS.low:g} to {NATS.high:g} nats" in PAGE
    assert f"up to {SPANS} collapsed spans" in PAGE


def test_every_key_of_a_line_is_explained(tmp_path: Path) -> None:
    reading = Reading({"mc/lens_score": np.ones((2, 40), np.int64)}, {"mc/spans": np.zeros((1, 3))})
    PictureRecord(tmp_path, None).write(1, 1, reading)
    line = json.loads((tmp_path / PICTURES).read_text("utf-8"))
    explained = {
        name for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.M) for name in row[1:-1].split("`, `")
    }
    assert set(line) <= explained


def test_every_picture_is_shown() -> None:
    pictures = [name.removeprefix("pictures/") for name in SHOWN if name.startswith("pictures/")]
    assert re.findall(r"!\[.+\]\(pictures/(\w+)\.png\)", PAGE) == pictures
    assert all((DOCS / "pictures" / f"{name}.png").stat().st_size < 200_000 for name in pictures)


def test_the_commands_of_the_page_are_there() -> None:
    commands = typer.main.get_command(app).commands["dashboard"].commands  # type: ignore[attr-defined]
    assert set(re.findall(r"mcframe dashboard (\w+)", PAGE)) == set(commands)
