"""StepMetrics against oracles; table, data and picture from results that are made up."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from mcframe.sweep import plot as picture
from mcframe.sweep import table
from mcframe.sweep.grid import Grid, Row
from mcframe.sweep.intervals import estimate
from mcframe.sweep.results import RunResult, compare, final_metrics, read_run

numbers = st.floats(-100, 100)
GRID = Grid(
    file=Path("made_up.toml"), gin=("smoke.gin",), set=("optimizer.lr = 0.001",), tokens=4096, seeds=(0, 1, 2),
    rows={"a": Row("a"), "b": Row("b", ("x.y = 'p|q'",)), "c": Row("c", ("x.y = 2", "x.z = 3"), "a")},
    baseline="a", metrics=("val/loss", "mc/tail_delta"),
)  # fmt: skip
CLOCK = {"train/tokens": 4096.0, "train/tokens_per_step": 1024.0}


def run(loss, tail=0.5, **others):
    return RunResult({**CLOCK, "val/loss": loss, "mc/tail_delta": tail, **others})


def results():
    return {
        "a": {0: run(3.0), 1: run(4.0), 2: run(5.0)},
        "b": {0: run(2.9), 1: run(3.9), 2: run(4.89)},
        "c": {0: run(3.5), 2: run(5.1)},
    }


# ---- intervals -----------------------------------------------------------------------------------
# 97.5 % quantiles of Student's t, by degrees of freedom, from printed tables.
T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}


@given(st.lists(numbers, min_size=2, max_size=8))
def test_estimate_is_mean_and_standard_error(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    found = estimate(values)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    half = T_TABLE[len(values) - 1] * math.sqrt(variance / len(values))
    assert found.half == pytest.approx(half, rel=1e-3, abs=1e-9)
    assert found.clear == (abs(found.mean) > found.half)


def test_one_seed_has_no_interval():
    assert (estimate([3.0]).half, estimate([3.0]).clear) == (None, False)


# ---- metrics at the end of a run -----------------------------------------------------------------
logged = st.dictionaries(st.sampled_from(["val/loss", "mc/x", "train/y", "train/tokens"]), st.none() | numbers)


@given(st.lists(st.tuples(st.integers(1, 40), logged), max_size=12), st.floats(0.05, 1.0))
def test_final_metrics(steps, average):
    clock, lines = 0, []
    for step, metrics in steps:
        clock += step
        lines.append({"tokens": clock, "step": 1, "time": 2.0, **metrics})
    found = final_metrics(lines, average)
    ends = [line["tokens"] for line in lines if any(value is not None for name, value in line.items() if "/" in name)]
    for name in ("val/loss", "mc/x", "train/y", "train/tokens"):
        seen = [(line["tokens"], line[name]) for line in lines if line.get(name) is not None]
        if not seen:
            assert name not in found
            continue
        late = [value for tokens, value in seen if tokens > (1 - average) * ends[-1]]
        averaged = name in ("mc/x", "train/y") and late
        assert found[name] == pytest.approx(sum(late) / len(late) if averaged else seen[-1][1], abs=1e-9)


def test_line_at_the_edge_of_the_average_is_excluded():
    assert final_metrics([{"tokens": 1, "mc/x": 9.0}, {"tokens": 2, "mc/x": 4.0}], 0.5) == {"mc/x": 4.0}


def test_run_is_read_with_its_evaluation(tmp_path):
    lines = [
        {"tokens": tokens, "step": 1, "time": 0, "mc/tail_delta": tokens, "val/loss": 9 - tokens} for tokens in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    grid = replace(GRID, evaluate=())
    assert read_run(tmp_path, grid, Row("a")) == RunResult({"mc/tail_delta": 2, "val/loss": 7})
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "eval.json").write_text('{"metrics": {"eval/kept": 0.25, "eval/none": null}}')
    (tmp_path / "provenance.json").write_text('{"revision": "abc"}')
    (tmp_path / "operative.gin").write_text("optimizer.lr = 1\nrun.seed = 2\n")
    found = read_run(tmp_path, replace(grid, average=1.0), Row("a"))
    assert found.metrics == {"mc/tail_delta": 1.5, "val/loss": 7, "eval/kept": 0.25}
    assert (found.revision, found.read) == ("abc", {"optimizer.lr", "run.seed"})
    # An earlier grid may have written an evaluation that this one does not have.
    for other, row in ((GRID, Row("a")), (grid, Row("a", evaluate=False))):
        assert read_run(tmp_path, other, row).metrics == {"mc/tail_delta": 2, "val/loss": 7}


# ---- rows ----------------------------------------------------------------------------------------
@given(st.lists(st.tuples(numbers, numbers, st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_differences_are_paired_by_seed(draws):
    base = {seed: run(a) for seed, (a, _, has, _) in enumerate(draws) if has}
    row = {seed: run(b) for seed, (_, b, _, has) in enumerate(draws) if has}
    both = [b - a for a, b, one, other in draws if one and other]
    found = {result.row.name: result for result in compare(GRID, {"a": base, "b": row}, GRID.seeds).rows}
    assert set(found) == {name for name, runs in (("a", base), ("b", row)) if runs}
    if base:
        assert found["a"].differences == {}
    if row and base and both:
        difference = found["b"].differences["val/loss"]
        assert (difference.mean, difference.n) == (pytest.approx(sum(both) / len(both), abs=1e-9), len(both))
    elif row:
        assert "val/loss" not in found["b"].differences


def test_pairing_removes_the_spread_of_seeds():
    a, b, c = compare(GRID, results(), GRID.seeds).rows
    assert a.values["val/loss"].half > 2
    assert b.differences["val/loss"].mean == pytest.approx(-0.10333, abs=1e-4)
    assert b.differences["val/loss"].clear
    assert not c.differences["val/loss"].clear
    assert c.differences["val/loss"].n == 2


@pytest.mark.parametrize("clock", ["train/tokens", "train/tokens_per_step"])
def test_rows_with_other_tokens_are_not_compared(clock):
    made_up = results()
    made_up["b"][1] = run(3.9, **{clock: 2048.0})
    comparison = compare(GRID, made_up, GRID.seeds)
    b = comparison.rows[1]
    assert (b.comparable, b.differences) == (False, {})
    assert comparison.rows[2].comparable
    assert any("b is not comparable with a: it read" in note and "2,048" in note for note in comparison.notes)
    text = table.page(comparison)
    assert "| b † |" in text
    assert "not comparable" in text


def test_notes_list_the_limits_of_a_comparison():
    made_up = results()
    made_up["b"] = {
        seed: replace(result, read=frozenset({"x.z"}), revision="new") for seed, result in made_up["b"].items()
    }
    grid = replace(GRID, metrics=("val/loss", "val/los"))
    notes = compare(grid, made_up, GRID.seeds).notes
    assert "c: no finished run for seed 1." in notes
    assert "c starts from the weights of a, whose tokens come on top of its own." in notes
    assert "b: when training began nothing had read x.y." in notes
    assert any(note.startswith("No run has the metric val/los (did you mean val/loss?)") for note in notes)
    assert "The runs were trained by different revisions of the code: new, unknown." in notes
    assert compare(GRID, {"b": made_up["b"]}, GRID.seeds).notes[0].startswith("The baseline a has no finished run")


# ---- what comes out ------------------------------------------------------------------------------
def test_table_has_every_row_escaped():
    text = table.page(compare(GRID, results(), GRID.seeds))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| row | set | `val/loss` (nats) | less a | `mc/tail_delta` (nats) | less a |"
    assert rows[2].startswith("| a | – | 4.00 ± 2.48 | baseline | 0.5000 ± 0 | baseline |")
    assert "| b | `x.y = 'p\\|q'` |" in rows[3]
    assert "**-0.1033 ± 0.0143**" in rows[3].replace("0.01434", "0.0143").replace("-0.10333", "-0.1033")
    assert "| c | from a<br>`x.y = 2`<br>`x.z = 3` |" in rows[4]
    columns = [len(row.replace("\\|", "").split("|")) for row in rows]
    assert all(one == other for one, other in pairwise(columns))
    assert "4,096 tokens a run; seeds 0, 1, 2." in text


def test_table_of_one_row_has_no_differences():
    grid = replace(GRID, rows={"a": Row("a")})
    assert "less a" not in table.page(compare(grid, {"a": results()["a"]}, (0, 1, 2)))


def test_data_have_every_metric_of_every_run():
    made_up = results()
    made_up["a"][0] = run(3.0, **{"eval/kept": 0.5})
    data = json.loads(json.dumps(table.as_data(compare(GRID, made_up, GRID.seeds))))
    assert data["rows"][0]["seeds"]["0"]["eval/kept"] == 0.5
    assert data["rows"][1]["differences"]["val/loss"]["n"] == 3
    assert (data["rows"][2]["from"], data["level"]) == ("a", 0.95)


@pytest.mark.parametrize("rows", [["a"], ["b"], ["a", "b", "c"]])
def test_figure_grows_with_rows_and_metrics(tmp_path, rows):
    made_up = {name: runs for name, runs in results().items() if name in rows}
    picture.draw(compare(GRID, made_up, GRID.seeds), tmp_path / "a.png")
    small = imread(tmp_path / "a.png")
    assert small[..., :3].std() > 0.05  # something is on it
    wide = replace(GRID, metrics=("val/loss", "mc/tail_delta", "train/tokens", "train/tokens_per_step"))
    picture.draw(compare(wide, made_up, GRID.seeds), tmp_path / "b.png")
    assert imread(tmp_path / "b.png").shape[0] > 1.5 * small.shape[0]


def test_rows_of_the_figure_are_in_the_order_of_the_table(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(picture.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    picture.draw(compare(GRID, results(), GRID.seeds), tmp_path / "a.png")
    axes = drawn[0].axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b", "c"]
    for axis in axes:
        bottom, top = axis.get_ylim()
        assert bottom > top  # the first row is at the top
    low, high = axes[0].get_xlim()
    assert low < -0.11 < 0.5 < high  # every seed's difference is within


@given(st.floats(-1e6, 1e6))
def test_figures_read_back_to_three_digits(value):
    shown = float(table.figure(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=5e-3, abs=1e-9)
