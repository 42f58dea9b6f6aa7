"""The history of `mcframe bench`: what is compared, and what is named."""

import copy
import json

import pytest

from mcframe.cli.bench_history import compare, read_history
from mcframe.errors import UserError

ROW = {
    "file": "smoke.gin", "case": "as written", "digest": "1", "ranks": 1, "clock": "processor", "floor": "networks",
    "machine": {"device": "x", "threads": 1}, "revision": "abc",
    "figures": {"step/baseline": 3.0, "step/floor": 1.1, "baseline/floor": 1.05, "floor_ms": 10.0},
    "phases": {"train/step_ms": 11.0, "train/base_ms": 3.0, "train/backward_ms": 7.0},
}  # fmt: skip


def changed(figures=(), phases=(), **others):
    row = copy.deepcopy(ROW) | others
    row["figures"] |= figures
    row["phases"] |= phases
    return row


def test_a_ratio_that_rose_is_named_with_the_phase_that_explains_it():
    slower = changed({"step/floor": 1.4}, {"train/step_ms": 14.0, "train/backward_ms": 10.0})
    first, second = compare([slower], [ROW], 0.05)
    assert first == "smoke.gin, as written: step/floor rose from 1.100 to 1.400 since abc"
    assert second == "smoke.gin, as written: of it train/backward_ms, from 0.700 to 1.000 of the floor"


def test_a_rise_within_the_tolerance_is_not_named():
    assert not compare([changed({"step/floor": 1.14})], [ROW], 0.05)
    assert compare([changed({"step/floor": 1.14})], [ROW], 0.03)


@pytest.mark.parametrize(
    "other", [{"digest": "2"}, {"ranks": 2}, {"clock": "wall"}, {"machine": {"device": "x", "threads": 2}}]
)
def test_another_machine_or_setting_is_not_compared(other):
    assert not compare([changed({"step/floor": 2.0}, **other)], [ROW], 0.05)


def test_the_median_of_the_newest_lines_is_compared():
    odd = changed({"step/floor": 0.5}, revision="odd")
    assert not compare([ROW], [ROW, ROW, ROW, odd, odd], 0.05)
    assert compare([ROW], [ROW, ROW, *[odd] * 5], 0.05)


@pytest.mark.parametrize(
    "line",
    [
        "{}", "no JSON", "[]", "\udcff", json.dumps(ROW | {"figures": {}}), json.dumps(changed({"step/floor": None})),
        json.dumps(changed({"step/baseline": float("nan")})), json.dumps(changed({"floor_ms": 0.0})),
    ],
)  # fmt: skip
def test_a_line_that_is_not_a_row_is_an_error_with_its_number(tmp_path, line):
    file = tmp_path / "history.jsonl"
    assert read_history(file) == []
    file.write_text(json.dumps(ROW) + "\n" + line + "\n", "utf-8", errors="surrogateescape")
    with pytest.raises(UserError) as raised:
        read_history(file)
    assert raised.value.location.line == 2
