"""Data of the figures, its history over a run, and the drawn figures."""

import itertools
import json

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from mcframe.context.context_tree import ContextTree
from mcframe.context.step_histograms import NATS_BINS, SCORE_BINS
from mcframe.metrics import figures, history
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.figure_data import PICTURES, SUPERSEDED, PictureRecord, histograms, readings
from mcframe.metrics.figure_recorder import FOLDER, FigureRecorder
from mcframe.metrics.history import History
from mcframe.metrics.loggers import Loggers

TREE = ContextTree(window=64, block_size=4, levels=2, tail=8)


def reading(seed=0):
    """Make a reading of 8 contexts: in `seed % 8` of them LOD2 covers the first four blocks."""
    rng = np.random.default_rng(seed)
    blocks = np.zeros((3, TREE.blocks), np.int64)
    blocks[0] = 8
    blocks[2, :4] = seed % 8
    blocks[0, :4] -= seed % 8
    scores = rng.integers(0, 9, (3, SCORE_BINS.bins))
    deltas = rng.integers(0, 9, (3, NATS_BINS.bins))
    spans = np.stack((rng.uniform(-1, 1, 20), rng.normal(0, 0.2, 20), rng.integers(1, 3, 20)), axis=1).round(4)
    counts = {"mc/blocks/variants": blocks, "mc/lens_score": scores, "mc/entry_delta": deltas}
    return Reading(counts=counts | {"mc/variant_delta": deltas[:1]}, points={"mc/spans": spans})


def focus(seed=0):
    return Reading(counts={"mc/blocks/lens": reading(seed).counts["mc/blocks/variants"]})


class RecordingLogger:
    """Logger that records images and histograms."""

    def __init__(self):
        self.images, self.histograms, self.location = {}, {}, None

    def image(self, tokens, name, image):
        self.images[name, tokens] = image

    def histogram(self, tokens, name, histogram):
        self.histograms[name, tokens] = histogram

    def close(self):
        pass


# ---- the record ----------------------------------------------------------------------------------
def test_keys_of_a_line(tmp_path):
    PictureRecord(tmp_path, None).write(2048, 2, reading(3))
    (line,) = [json.loads(line) for line in (tmp_path / PICTURES).read_text().splitlines()]
    assert (line["tokens"], line["step"]) == (2048, 2)
    made = reading(3)
    assert line["counts"]["mc/lens_score/1"] == made.counts["mc/lens_score"][1].tolist()
    assert line["counts"]["mc/variant_delta"] == made.counts["mc/variant_delta"][0].tolist()
    assert line["counts"]["mc/blocks/variants/2"][:5] == [3, 3, 3, 3, 0]
    assert "mc/blocks/variants/1" not in line["counts"]  # nothing is at LOD1
    assert line["edges"] == {
        "mc/lens_score": SCORE_BINS.edges, "mc/entry_delta": NATS_BINS.edges, "mc/variant_delta": NATS_BINS.edges,
    }  # fmt: skip
    assert line["points"]["mc/spans"] == made.points["mc/spans"].tolist()


def test_reads_what_it_wrote_and_archives_lines_after_the_point_of_resumption(tmp_path):
    record = PictureRecord(tmp_path, None)
    for tokens in (0, 10, 20, 30):
        record.write(tokens, tokens, reading(tokens))
    resumed = PictureRecord(tmp_path, 20)
    found = list(readings(resumed.path))
    assert [tokens for tokens, _, _ in found] == [0, 10, 20]
    for tokens, _, each in found:
        for name, counts in reading(tokens).counts.items():
            known = np.zeros_like(counts)
            known[: len(each.counts.get(name, ()))] = each.counts.get(name, np.zeros((0, counts.shape[1])))
            assert np.array_equal(known, counts)
        assert np.array_equal(each.points["mc/spans"], reading(tokens).points["mc/spans"])
    assert json.loads((tmp_path / SUPERSEDED).read_text())["tokens"] == 30
    assert list(readings(tmp_path / "missing")) == []


def test_names_of_histograms():
    found = histograms(reading(1))
    assert set(found) == {
        "mc/variant_delta", *(f"mc/{name}/{lod}" for name in ("lens_score", "entry_delta") for lod in range(3))
    }  # fmt: skip
    assert found["mc/lens_score/2"].counts == reading(1).counts["mc/lens_score"][2].tolist()
    assert found["mc/lens_score/2"].edges == SCORE_BINS.edges
    assert histograms(focus(1)) == {}


# ---- over time -----------------------------------------------------------------------------------
def test_history_merges_rows_and_loses_no_count(monkeypatch):
    monkeypatch.setattr(history, "ROWS", 8)
    monkeypatch.setattr(history, "POINTS", 50)
    long = History()
    for tokens in range(1, 101):
        long.add(tokens, reading(tokens))
    ends, counts = long.table("mc/lens_score", 1)
    assert len(ends) <= 8
    assert ends[-1] == 100
    assert (np.diff(ends) > 0).all()
    assert np.array_equal(counts.sum(axis=0), sum(reading(t).counts["mc/lens_score"][1] for t in range(1, 101)))
    first = sum(reading(t).counts["mc/lens_score"][1] for t in range(1, ends[0] + 1))
    assert np.array_equal(counts[0], first)
    newest = np.concatenate([reading(t).points["mc/spans"] for t in (98, 99, 100)])[-50:]
    assert np.array_equal(long.points["mc/spans"], newest)


def test_missing_rows_are_zero():
    known = History()
    known.add(10, Reading(counts={"mc/blocks/lens": np.full((1, 16), 8)}))
    known.add(20, focus(5))
    ends, counts = known.table("mc/blocks/lens", 2)
    assert (ends.tolist(), counts[:, 0].tolist()) == ([10, 20], [0, 5])
    assert known.table("mc/nothing", 0)[1].size == 0


# ---- drawn figures -------------------------------------------------------------------------------
def meshes(figure):
    """Return title -> values of the panel, [positions or bins, times]."""
    from matplotlib.collections import QuadMesh

    found = {}
    for axis in figure.axes:
        for item in axis.collections:
            if isinstance(item, QuadMesh) and axis.get_title():
                found[axis.get_title()] = np.asarray(item.get_array())
    return found


@pytest.fixture
def known():
    known = History()
    known.add(0, focus(7))
    for tokens in (1000, 2000, 3000):
        known.add(tokens, reading(tokens // 1000))
    known.add(3000, focus(4))
    return known


def test_fractions_of_contexts(known):
    figure = figures._contexts(known, TREE, "a run")
    shown = meshes(figure)
    variants = shown["variants in training: in a gist of LOD2"]
    assert variants.shape == (3, TREE.blocks)
    assert variants[:, :5].tolist() == [[1 / 8] * 4 + [0], [2 / 8] * 4 + [0], [3 / 8] * 4 + [0]]
    lens = shown["LensNet's focus on held-out windows: in a gist of LOD2"]
    assert lens[:, 0].tolist() == [7 / 8, 4 / 8]
    assert not shown["variants in training: in a gist of LOD1"].any()
    assert figure.get_suptitle() == "How often a block of the window is compressed (a run)"
    assert {axis.get_ylabel() for axis in figure.axes} >= {"dataset tokens", "fraction of contexts"}


def test_histograms_over_time(known):
    shown = meshes(figures._lens(known, TREE, "a run"))
    for lod, title in enumerate(("raw tokens", "gists of LOD1", "gists of LOD2")):
        counts = reading(2).counts["mc/lens_score"][lod]
        assert shown[title][:, 1] == pytest.approx(counts / counts.sum())
    costs = meshes(figures._gist_cost(known, TREE, "a run"))
    assert list(costs) == ["mean of a variant", "gists of LOD1", "gists of LOD2", "raw tokens after a gist"]
    counts = reading(3).counts["mc/entry_delta"][0]
    assert costs["raw tokens after a gist"][:, 2] == pytest.approx(counts / counts.sum())


def test_spans_and_their_correlation(known):
    scatter = figures._lens(known, TREE, "a run").axes[3]
    spans = known.points["mc/spans"]
    drawn = np.concatenate([each.get_offsets() for each in scatter.collections])
    expected = np.concatenate([spans[spans[:, 2] == lod] for lod in (1, 2)])[:, [1, 0]]
    assert np.asarray(drawn) == pytest.approx(expected)
    r = np.corrcoef(spans[:, 0], spans[:, 1])[0, 1]
    assert scatter.get_title() == f"newest 60 spans: r = {r:+.2f}"
    assert [text.get_text() for text in scatter.get_legend().get_texts()] == ["LOD1", "LOD2"]


def test_nothing_is_clipped_or_overlaps():
    deep, known = ContextTree(window=2048, block_size=32, levels=3, tail=128), History()
    rng = np.random.default_rng(0)
    blocks, deltas = rng.multinomial(8, [0.25] * 4, deep.blocks).T, rng.integers(0, 9, (4, NATS_BINS.bins))
    spans = np.stack((rng.uniform(-1, 1, 1024), rng.normal(0, 0.02, 1024), rng.integers(1, 4, 1024)), axis=1)
    counts = {"mc/blocks/variants": blocks, "mc/blocks/lens": blocks[::-1], "mc/entry_delta": deltas}
    counts |= {"mc/lens_score": rng.integers(0, 9, (4, SCORE_BINS.bins)), "mc/variant_delta": deltas[:1]}
    known.add(987_654_321, Reading(counts=counts, points={"mc/spans": spans}))
    with matplotlib.rc_context(figures._STYLE):
        for draw in (figures._contexts, figures._lens, figures._gist_cost):
            figure = draw(known, deep, "a run")
            width, height = figure.get_size_inches()
            drawn = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
            assert 0 <= drawn.x0 < drawn.x1 <= width
            assert 0 <= drawn.y0 < drawn.y1 <= height
            boxes = [axis.get_tightbbox() for axis in figure.axes]
            assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2)), draw


def test_records_logs_and_draws(tmp_path):
    run = tmp_path / r"$\frac$"  # titles contain the name of the run, which is not a formula
    run.mkdir()
    logger = RecordingLogger()
    recorder = FigureRecorder(run, TREE, Loggers({"recording": logger}), None)
    recorder.record(1000, 1, Reading())  # of a plain baseline
    recorder.draw(1000)
    assert list(run.iterdir()) == []
    recorder.record(1000, 1, reading(1))
    assert logger.histograms == {}  # the metrics of the step come first
    recorder.log(1000, reading(1))
    recorder.record(2000, 2, focus(2))
    recorder.log(2000, focus(2))
    recorder.draw(2000)
    assert {name for name, tokens in logger.histograms if tokens == 1000} == set(histograms(reading(1)))
    assert {tokens for _, tokens in logger.histograms} == {1000}
    files = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in (run / "pictures").iterdir()}
    assert set(files) == {"contexts", "lens", "gist_cost"}
    for name, pixels in files.items():
        shown = logger.images[f"pictures/{name}", 2000]
        assert shown.dtype == np.uint8
        assert np.array_equal(shown, pixels)
        assert len(np.unique(pixels @ np.array([65536, 256, 1]))) > 50  # colours


def test_continues_in_a_resumed_run(tmp_path):
    complete, first = (FigureRecorder(tmp_path / name, TREE, Loggers({}), None) for name in ("complete", "resumed"))
    for folder in ("complete", "resumed"):
        (tmp_path / folder).mkdir()
    for tokens in (10, 20, 30, 40):
        complete.record(tokens, tokens, reading(tokens))
        if tokens <= 30:
            first.record(tokens, tokens, reading(tokens))
    resumed = FigureRecorder(tmp_path / "resumed", TREE, Loggers({}), 20)
    for tokens in (30, 40):
        resumed.record(tokens, tokens, reading(tokens))
    for name, counts in reading().counts.items():
        for row in range(len(counts)):
            for ours, theirs in zip(resumed._history.table(name, row), complete._history.table(name, row), strict=True):
                assert np.array_equal(ours, theirs)


def test_missing_data_has_no_panel():
    flat = ContextTree(window=64, block_size=4, levels=1, tail=8)
    known = History()
    counts = {name: table[:2] for name, table in reading(1).counts.items() if name != "mc/lens_score"}
    known.add(10, Reading(counts=counts))
    assert figures._lens(known, flat, "") is None
    assert [name for name, _ in figures.pictures(known, flat, "")] == ["contexts", "gist_cost"]
    assert [name for name, _ in figures.pictures(History(), flat, "")] == []
    bare = History()
    blocks = counts["mc/blocks/variants"]
    bare.add(10, Reading(counts={"mc/blocks/variants": blocks, "mc/entry_delta": np.zeros((2, 61))}))
    assert [name for name, _ in figures.pictures(bare, flat, "")] == ["contexts"]


def test_resuming_with_other_blocks_draws_the_new_readings(tmp_path):
    PictureRecord(tmp_path, None).write(1000, 1, reading(1))
    coarse = ContextTree(window=64, block_size=8, levels=1, tail=8)
    recorder = FigureRecorder(tmp_path, coarse, Loggers({}), 1000)
    recorder.draw(1000)
    assert not (tmp_path / FOLDER / "contexts.png").exists()
    blocks = np.full((2, coarse.blocks), 4)
    recorder.record(2000, 2, Reading(counts={"mc/blocks/variants": blocks}))
    recorder.draw(2000)
    assert (tmp_path / FOLDER / "contexts.png").exists()
    assert np.array_equal(recorder._history.table("mc/blocks/variants", 1)[1], blocks[:1])


def test_a_failed_figure_costs_a_warning(tmp_path, monkeypatch, caplog):
    logger = RecordingLogger()
    recorder = FigureRecorder(tmp_path, TREE, Loggers({"recording": logger}), None)
    recorder.record(1000, 1, reading(1))
    monkeypatch.setattr(figures, "_lens", lambda *_: 1 / 0)
    (tmp_path / FOLDER).touch()
    recorder.draw(1000)
    assert "figure lens cannot be drawn: ZeroDivisionError" in caplog.text
    assert "figure contexts cannot be written: " in caplog.text
    assert {name for name, _ in logger.images} == {"pictures/contexts", "pictures/gist_cost"}
