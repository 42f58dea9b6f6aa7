"""A metrics.jsonl of another tool is one message that names file and line; a torn line is not."""

import json

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.errors import UserError
from mcframe.review.record import read_run

OWN = {"tokens": 1, "step": 1, "time": 1.0, "train/loss": 2.0}


@pytest.mark.parametrize(
    "line",
    ['{"epoch": 1, "loss": 2.0}', "[1, 2]", "3", "null", '"text"', '{"tokens": "12", "step": 1}',
     '{"tokens": 1, "step": null}', '{"tokens": true, "step": 1}', '{"tokens": NaN, "step": 1}'],
)  # fmt: skip
@pytest.mark.parametrize("command", ["review", "compare", "dashboard wandb"])
def test_lines_of_another_tool_are_named(tmp_path, line, command):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(f"{{torn\n{line}\n{line}\n")
    runs = [str(tmp_path / name) for name in ("a", "b")][: 2 if command == "compare" else 1]
    result = CliRunner().invoke(app, [*command.split(), *runs], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert f"{tmp_path / 'a' / 'metrics.jsonl'}:2" in result.output
    assert "expected an object with the numbers tokens and step" in result.output


def test_odd_values_next_to_own_lines_are_skipped(tmp_path):
    lines = [json.dumps(OWN), '{"epoch": 1}', json.dumps({**OWN, "step": 2, "time": "noon", "note": "text"}), '{"tok']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "texts.jsonl").write_text('[1]\n{"name": "working_contexts"}\n')
    (tmp_path / "pictures.jsonl").write_text('{"tokens": 1, "step": 1, "counts": 3}\n')
    (tmp_path / "summary.json").write_text('{"tokens": "many"}')
    (tmp_path / "operative.gin").write_bytes(b"run.seed = 1 # \xff\n")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "eval.json").write_text('{"metrics": [1]}')
    run = read_run(tmp_path)
    assert run.lines == 2
    assert "2 line(s)" in run.notes[0]
    result = CliRunner().invoke(app, ["review", str(tmp_path)])
    assert result.exit_code == 0, result.output


def test_a_file_of_torn_lines_is_not_called_foreign(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"tok')
    with pytest.raises(UserError, match="no metric between"):
        read_run(tmp_path)
