"""`mcframe bench` on real steps."""

import json

import pytest

pytestmark = pytest.mark.launcher


def bench(launches, *options):
    return launches.command("bench", "gin/smoke.gin", *options)


def test_settings_are_compared_with_their_baseline_and_floor(launches, tmp_path):
    written, history = tmp_path / "figures.json", tmp_path / "history.jsonl"
    case = "context.window = 64; variants.random_collapse.count = 3"
    files = ["--json", str(written), "--history", str(history)]
    result = bench(launches, "--rounds", "3", "--case", case, *files).succeeded()
    first, second = rows = json.loads(written.read_text("utf-8"))
    assert [json.loads(line) for line in history.read_text("utf-8").splitlines()] == rows
    assert [row["case"] for row in rows] == ["as written", case]
    assert first["digest"] != second["digest"]
    for row in rows:
        own = row["figures"]
        assert own["step_ms"] > own["baseline_ms"] > 0
        assert own["floor_ms"] > own["baseline_floor_ms"] > 0
        passes = row["phases"]["train/step_ms"] - row["phases"]["train/optimizer_ms"]
        assert own["step/floor"] == pytest.approx(passes / own["floor_ms"], rel=0.3)  # medians of few
        assert {"train/base_ms", "mc/variant_ms", "mc/lens_ms", "train/backward_ms"} <= row["phases"].keys()
        assert "mc/variant_ms" not in row["baseline_phases"]
    assert 2 < first["figures"]["flops/baseline"] < 5
    assert "times floor" in result.text
    assert "backward" in result.text


@pytest.mark.matrix
def test_ranks_and_a_regression(launches, tmp_path):
    history = tmp_path / "history.jsonl"
    options = ["--rounds", "2", "--ranks", "2", "--set", "deepspeed.zero_stage = 3", "--history", str(history)]
    bench(launches, *options).succeeded()
    row = json.loads(history.read_text("utf-8"))
    assert (row["ranks"], row["clock"]) == (2, "wall")
    sent = sum((2 if name == "allreduce" else 1) * size for name, size in row["communicated"].items()) / 2
    assert sent == pytest.approx(row["figures"]["formula_bytes"], rel=1e-3)
    row["figures"]["step/baseline"] /= 10
    history.write_text(json.dumps(row) + "\n", "utf-8")
    again = bench(launches, *options)
    assert again.code == 1
    assert "step/baseline rose" in again.text


def test_a_setting_that_is_wrong_is_one_message(launches):
    result = bench(launches, "--case", "context.widow = 64")
    assert result.code == 2
    assert result.errors == 1
