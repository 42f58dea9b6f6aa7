import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.hookspecs import RunStart
from mcframe.metrics.jsonl_logger import METRICS, SUPERSEDED, JsonlLogger


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def recorded(run_dir, tokens, resume_tokens=None):
    logger = JsonlLogger(RunStart(run_dir, {}, resume_tokens))
    for count in tokens:
        logger.write(count, count // 10, {"train/loss": float(count)})
    logger.close()


def test_a_line_holds_the_clock_and_the_metrics(tmp_path):
    logger = JsonlLogger(RunStart(tmp_path, {}, None))
    logger.write(2048, 3, {"train/loss": 5.5, "mc/lod_delta/1": -0.25})
    (line,) = lines(tmp_path / METRICS)  # flushed: readable before the file is closed
    assert abs(line.pop("time") - time.time()) < 60
    assert line == {"tokens": 2048, "step": 3, "train/loss": 5.5, "mc/lod_delta/1": -0.25}
    logger.close()


def test_values_that_are_not_in_json_become_null(tmp_path):
    logger = JsonlLogger(RunStart(tmp_path, {}, None))
    logger.write(1, 1, {"a": math.nan, "b": math.inf, "c": 1.0})
    logger.close()
    (line,) = (tmp_path / METRICS).read_text().splitlines()
    parsed = json.loads(line, parse_constant=pytest.fail)
    assert (parsed["a"], parsed["b"], parsed["c"]) == (None, None, 1.0)


def test_resuming_archives_lines_after_that_point(tmp_path):
    recorded(tmp_path, [10, 20, 30, 40])
    recorded(tmp_path, [30, 40, 50], resume_tokens=20)
    assert [line["tokens"] for line in lines(tmp_path / METRICS)] == [10, 20, 30, 40, 50]
    assert [line["tokens"] for line in lines(tmp_path / SUPERSEDED)] == [30, 40]
    recorded(tmp_path, [40], resume_tokens=30)
    assert [line["tokens"] for line in lines(tmp_path / METRICS)] == [10, 20, 30, 40]
    assert [line["tokens"] for line in lines(tmp_path / SUPERSEDED)] == [30, 40, 40, 50]


def test_a_fresh_start_in_a_used_directory_loses_nothing(tmp_path):
    recorded(tmp_path, [0, 10])
    recorded(tmp_path, [0, 10, 20], resume_tokens=None)
    assert [line["tokens"] for line in lines(tmp_path / METRICS)] == [0, 10, 20]
    assert [line["tokens"] for line in lines(tmp_path / SUPERSEDED)] == [0, 10]


def test_a_resumption_with_nothing_to_move_leaves_no_second_file(tmp_path):
    recorded(tmp_path, [10])
    recorded(tmp_path, [20], resume_tokens=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 300), st.sampled_from([0, 10, 20, 30]))  # a line has some 70 bytes
def test_after_a_crash_at_any_byte_nothing_is_lost_and_every_line_can_be_read(tmp_path_factory, length, resume):
    run_dir = tmp_path_factory.mktemp("run")
    recorded(run_dir, [10, 20, 30])
    path = run_dir / METRICS
    cut = path.read_bytes()[:length]
    path.write_bytes(cut)
    JsonlLogger(RunStart(run_dir, {}, resume)).close()
    kept = path.read_bytes()
    moved = (run_dir / SUPERSEDED).read_bytes() if (run_dir / SUPERSEDED).exists() else b""
    assert (kept + moved).rstrip(b"\n") == cut.rstrip(b"\n")
    recorded(run_dir, [resume + 1], resume_tokens=resume)
    complete = [10, 20, 30][: cut.count(b"\n")]
    assert [line["tokens"] for line in lines(path)] == [t for t in complete if t <= resume] + [resume + 1]


def test_truncated_and_invalid_lines_are_archived(tmp_path):
    recorded(tmp_path, [10])
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b'{"tokens": \xff\xfe\n[]\n7\n{"step": 1}\n')
    recorded(tmp_path, [20], resume_tokens=10)
    assert [line["tokens"] for line in lines(tmp_path / METRICS)] == [10, 20]
    assert (tmp_path / SUPERSEDED).read_bytes().count(b"\n") == 4
