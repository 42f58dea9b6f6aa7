"""Runs of any length and in any state are read without a change of their values."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from mcframe.errors import UserError
from mcframe.hookspecs import RunStart
from mcframe.metrics.jsonl_logger import JsonlLogger
from mcframe.review.event_files import read_events
from mcframe.review.record import read_config, read_run
from mcframe.review.series import CAPACITY, Series
from tests.support.synthetic_runs import healthy, write_run

STEPS = 60


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", healthy(n=20))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6 * CAPACITY), st.integers(0, 2**32 - 1))
def test_joined_points_preserve_extremes_and_means(count, seed):
    values = np.random.default_rng(seed).standard_normal(count)
    series = Series()
    for at, value in enumerate(values):
        series.add(10 * at, at, float(value))
    complete = values[: len(series) * series.stride].reshape(-1, series.stride)
    assert len(series) < max(CAPACITY, count)
    assert len(values) - complete.size < series.stride
    assert np.allclose(series.means, complete.mean(axis=1))
    assert np.array_equal(series.highs, complete.max(axis=1))
    assert np.array_equal(series.lows, complete.min(axis=1))
    assert np.array_equal(series.steps, np.arange(count)[: complete.size].reshape(-1, series.stride)[:, -1])
    assert (series.first, series.last, series.count) == (values[0], values[-1], count)


def test_memory_does_not_grow_with_the_run(tmp_path):
    def peak(lines):
        directory = tmp_path / str(lines)
        directory.mkdir()
        with (directory / "metrics.jsonl").open("w") as file:
            for at in range(lines):
                metrics = {f"mc/x_{k}": at * 0.5 + k for k in range(5)}
                file.write(json.dumps({"tokens": 100 * at, "step": at, "time": 1.0, **metrics}) + "\n")
        tracemalloc.start()
        record = read_run(directory)
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert record.lines == lines
        assert all(len(series) < CAPACITY for series in record.series.values())
        return measured

    peak(10)  # imports
    assert peak(10 * CAPACITY) < min(1.3 * peak(2 * CAPACITY), 1_000_000)


def test_a_run_killed_at_any_byte_is_read(tmp_path):
    run = write_run(tmp_path / "run", healthy(n=20), finished=False)
    content = (run / "metrics.jsonl").read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    for cut in [*range(ends[-3] + 1, len(content), 61), ends[-1] - 1, ends[-2]]:
        (run / "metrics.jsonl").write_bytes(content[:cut])
        record = read_run(run)
        # A line without its line feed is complete.
        assert record.lines == sum(end <= cut + 1 for end in ends)
        assert bool(record.notes) == (cut not in ends and cut + 1 not in ends)
        assert record.state == "stopped without a summary"


def test_garbage_between_lines_is_skipped_with_a_note(run):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(
        b"".join([*lines[:5], b"\x00\xff torn\n", b"[1]\n", b'{"tokens": "x"}\n', *lines[5:]])
    )
    record = read_run(run)
    assert record.lines == 20
    assert "3 line(s)" in record.notes[0]


def test_the_state_of_a_run(run):
    assert read_run(run).state == "finished"
    (run / "summary.json").write_text('{"status": "interrupted", "tokens": 100}')
    assert read_run(run).state == "stopped without a summary"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"tokens": 300_000, "step": 21, "time": time.time(), "train/loss": 1.0}) + "\n")
    assert read_run(run).state == "running"
    (run / "summary.json").write_text('{"status": "inter')
    assert any("summary.json is incomplete" in note for note in read_run(run).notes)


def test_steps_are_restricted(run):
    record = read_run(run, 5, 15)
    assert record.steps == (5, 15)
    assert len(record.series["train/loss"]) == 11
    with pytest.raises(UserError, match="between steps 50 and the end"):
        read_run(run, 50)
    with pytest.raises(UserError, match="--from before --to"):
        read_run(run, 9, 3)


def write_events(directory, metrics, axis_of_tokens):
    with closing(SummaryWriter(str(directory))) as writer:
        for at in range(STEPS):
            for name, values in {**metrics, "train/tokens": 12288.0 * np.arange(1, STEPS + 1)}.items():
                writer.add_scalar(name, values[at], global_step=(at + 1) * (12288 if axis_of_tokens else 1))
        writer.add_text("working_contexts", "    ·1··|··", global_step=12288 if axis_of_tokens else 1)


@pytest.mark.parametrize("axis_of_tokens", [True, False])
def test_third_party_tensorboard_files_have_the_same_values(tmp_path, axis_of_tokens):
    metrics = healthy(n=STEPS)
    ours = read_run(write_run(tmp_path / "ours", metrics))
    write_events(tmp_path / "theirs", metrics, axis_of_tokens)
    theirs = read_run(tmp_path / "theirs")
    assert theirs.x == "tokens"
    for name in metrics:
        for field in ("means", "tokens", "steps"):
            assert np.allclose(getattr(theirs.series[name], field), getattr(ours.series[name], field), rtol=1e-5)
    assert [text for _, text in theirs.strips] == ["·1··|··"]


def test_event_files_without_tokens_are_read_by_steps(tmp_path):
    with closing(SummaryWriter(str(tmp_path / "other"))) as writer:
        for at in range(30):
            writer.add_scalar("loss", 1 / (1 + at), global_step=at)
    record = read_run(tmp_path / "other")
    assert record.x == "steps"
    assert len(record.series["loss"]) == 30
    assert "does not count tokens" in record.notes[0]


def test_truncated_event_files_are_read_up_to_the_truncation(tmp_path):
    write_events(tmp_path / "tb", {"train/loss": healthy(n=STEPS)["train/loss"]}, True)
    (file,) = (tmp_path / "tb").glob("*tfevents*")
    content = file.read_bytes()
    text = content.index(b"working_contexts")
    for cut in [*range(len(content) - 150, len(content), 7), *range(text - 40, text + 60, 3), len(content) - 1]:
        file.write_bytes(content[:cut])
        record = read_run(tmp_path / "tb")
        assert STEPS - 2 <= len(record.series["train/loss"]) <= STEPS
        assert len(record.series["train/tokens"]) <= STEPS
        assert record.strips in ([], [(12288, "·1··|··")])
    file.write_bytes(content[:text])
    assert read_run(tmp_path / "tb").strips == []
    file.write_bytes(content[: len(content) // 2] + bytes(200))  # a file that grew before its data was written
    assert len(read_run(tmp_path / "tb").series["train/loss"]) < STEPS


def test_the_first_and_the_last_text_are_found(tmp_path):
    for run in range(2):
        with closing(SummaryWriter(str(tmp_path / "tensorboard"), filename_suffix=f".{run}")) as writer:
            for at in range(1 + 10 * run, 11 + 10 * run):
                writer.add_scalar("train/working_contexts", 1.0, at)
                writer.add_text("samples", "working_contexts/text_summary", at)
                writer.add_text("working_contexts", f"    focused ·{at}··|··\n    random", at)
        file = next((tmp_path / "tensorboard").glob(f"*.{run}"))
        file.rename(file.with_name(f"events.out.tfevents.{run}"))  # in one second, names sort by a counter: 10 before 9
    assert read_run(tmp_path).strips == [(1, "focused ·1··|··\nrandom"), (20, "focused ·20··|··\nrandom")]
    assert read_events(tmp_path).texts.keys() == {"samples", "working_contexts"}


def test_texts_of_a_run_are_read_from_its_record(tmp_path):
    """JsonlLogger writes them; a resumed run supersedes those after its checkpoint."""
    for resume, at in ((None, (1, 2, 3)), (2, (4,))):
        with closing(JsonlLogger(RunStart(tmp_path, {}, resume))) as logger:
            for tokens in at:
                logger.write(tokens, tokens, {"train/loss": 1.0})
                logger.text(tokens, "working_contexts", f"·{tokens}|·")
                logger.text(tokens, "samples", "words")
    assert read_run(tmp_path).strips == [(1, "·1|·"), (4, "·4|·")]
    assert '"tokens": 3' in (tmp_path / "texts.superseded.jsonl").read_text()
    content = (tmp_path / "texts.jsonl").read_bytes()
    (tmp_path / "texts.jsonl").write_bytes(content[:-4])
    assert read_run(tmp_path).strips[0] == (1, "·1|·")


def test_long_values_of_gin_are_joined(tmp_path):
    file = tmp_path / "operative.gin"
    file.write_text("# a comment\na.b = 1\nc.d = \\\n    ('x',\n     'y')\ne.f = 'g = h'\n")
    assert read_config(file) == {"a.b": "1", "c.d": "\\ ('x', 'y')", "e.f": "'g = h'"}
