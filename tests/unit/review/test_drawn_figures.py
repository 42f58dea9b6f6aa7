"""The recorded figures of a run in its review, up to the last step under review."""

from __future__ import annotations

import io
import re

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.metrics import figures
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.figure_data import PictureRecord
from mcframe.review.record import read_run
from mcframe.review.recorded_figures import recorded_figures
from tests.support.synthetic_runs import CONFIG, healthy, write_run

SHAPE = {"block_size": "32", "levels": "1", "slots": "1", "tail": "128", "sink": "0"}
BLOCKS = 64


@pytest.fixture
def run(tmp_path):
    """Return a run with figure data that changes at step 100."""
    config = {**CONFIG, **{f"context.{key}": value for key, value in SHAPE.items()}}
    directory = write_run(tmp_path / "run", healthy(), config=config)
    record, rng = PictureRecord(directory, None), np.random.default_rng(0)
    for step in range(1, 171, 2):
        blocks = np.stack([np.full(BLOCKS, 8), np.zeros(BLOCKS)]).astype(np.int64)
        blocks[:, step % 10 if step < 100 else 40] = [1, 7]
        counts = {
            "mc/blocks/variants": blocks,
            "mc/lens_score": rng.integers(0, 50, (2, 40)),
            "mc/variant_delta": rng.integers(0, 50, (1, 61)),
            "mc/entry_delta": rng.integers(0, 50, (2, 61)),
        }
        spans = np.stack([rng.uniform(-1, 1, 8), rng.normal(size=8), np.ones(8)], axis=1)
        record.write(12288 * step, step, Reading(counts=counts, points={"mc/spans": spans}))
    return directory


def pixels(part):
    return matplotlib.image.imread(io.BytesIO(part.png), format="png")


def test_a_review_has_the_figures(run):
    assert CliRunner().invoke(app, ["review", str(run)]).exit_code == 0
    html, markdown = ((run / "review" / f"review.{end}").read_text("utf-8") for end in ("html", "md"))
    assert html.count('src="data:image/png;base64,') == 3
    for name in ("contexts", "lens", "gist_cost"):
        (file,) = re.findall(rf"!\[.*\]\((plots/drawn_{name}\.png)\)", markdown)
        assert (run / "review" / file).stat().st_size > 5000


def test_only_steps_under_review_are_drawn(run):
    late, early = (pixels(recorded_figures(read_run(run, 1, end))["contexts"]) for end in (None, 90))
    assert late.shape == early.shape
    assert not np.array_equal(late, early)


def test_a_truncated_record_is_drawn_up_to_the_truncation(run):
    file = run / "pictures.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-200])
    assert "lens" in recorded_figures(read_run(run))
    file.write_bytes(b"")
    assert recorded_figures(read_run(run)) == {}


def test_no_figures_without_a_record_or_a_configuration(run):
    (run / "operative.gin").unlink()
    assert recorded_figures(read_run(run)) == {}
    (run / "pictures.jsonl").unlink()
    assert recorded_figures(read_run(run)) == {}


def test_a_figure_that_fails_is_skipped_with_a_warning(run, monkeypatch, caplog):
    calls = []

    def fail(*_):
        calls.append("lens")
        raise ValueError("no such colour")

    monkeypatch.setattr(figures, "_lens", fail)
    assert CliRunner().invoke(app, ["review", str(run)]).exit_code == 0
    assert (run / "review" / "review.html").read_text("utf-8").count('src="data:image/png;base64,') == 2
    assert calls == ["lens"]
    assert "figure lens cannot be drawn: ValueError: no such colour" in caplog.text
