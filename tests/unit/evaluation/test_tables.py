"""The tables of `mcframe eval` fit a terminal of 80 columns without a broken word."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mcframe.evaluation.focus_quality import FocusQuality
from mcframe.evaluation.gist_quality import GistQuality
from mcframe.evaluation.report import cell_text, show
from mcframe.hookspecs import EvalResult, Interval, Table
from tests.support.evaluation_builders import FLAT, TREE, build_eval_model, build_model, some_sequences

WIDTH = 80


def gist_quality() -> EvalResult:
    """Return a result with all conditions and subsets, a task's evidence and both baselines."""
    model, data = build_model(FLAT, seed=1), some_sequences(FLAT, 4, seed=1, evidence=True)
    drop, mean = build_model(FLAT, seed=5, gistnet=None), build_model(FLAT, seed=6, gistnet="mean")
    others = {"drop": build_eval_model(drop, data), "mean": build_eval_model(mean, data)}
    return GistQuality(lengths=(0.7,)).run(build_eval_model(model, data, baselines=others))


def focus_quality() -> EvalResult:
    model, data = build_model(TREE, seed=1), some_sequences(TREE, 4, seed=1)
    return FocusQuality(budgets=(0.8,), draws=1).run(build_eval_model(model, data))


def many_columns() -> EvalResult:
    """Return a table with more columns than fit, as a plug-in may."""
    columns = ("strategy", *(f"measurement_{at}" for at in range(12)))
    row = ("third-party", *(Interval(at / 7, -at / 3, float(at)) for at in range(12)))
    return EvalResult({}, [Table("a table of many columns [not markup]", columns, [row, row])], [], [], [])


@pytest.mark.parametrize("evaluate", [gist_quality, focus_quality, many_columns])
def test_no_word_is_broken_at_80_columns(evaluate):
    result = evaluate()
    assert result.tables
    for table in result.tables:
        out = io.StringIO()
        show(EvalResult({}, [table], [], [], []), Console(file=out, width=WIDTH))
        assert max(map(len, out.getvalue().splitlines())) <= WIDTH
        shown = set(out.getvalue().split())
        cells = [*table.columns, *(cell_text(cell) for row in table.rows for cell in row)]
        assert {word for cell in cells for word in cell.split()} <= shown
        assert set(table.title.replace(",", "").split()) <= {word.rstrip(",") for word in shown}
        if "accuracy of" not in table.title and evaluate is not many_columns:
            assert "continued" not in out.getvalue()
