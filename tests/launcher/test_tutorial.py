"""docs/tutorial.md, followed in this environment; `tox -e tutorial` follows it in a new one."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from mcframe.scaffold.names import Names
from mcframe.scaffold.package import render
from tests.support.run_tutorial import PAGE, replace_function, steps

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "run_tutorial.py"


@pytest.mark.launcher
@pytest.mark.matrix
def test_it_can_be_followed(launches, tmp_path: Path) -> None:
    """The script itself checks that the run's operative configuration names the plug-in."""
    command = [sys.executable, str(SCRIPT), "--quick", "--folder", str(tmp_path)]
    result = launches.execute(command, cwd=tmp_path)
    assert result.code == 0, result.output[-6000:]
    assert "gistnet.salient" in result.text


def test_the_page_shows_the_generated_files() -> None:
    page = PAGE.read_text("utf-8")
    written = render(Names.of("salient", "gistnet"), "gistnet")
    assert f"```gin\n{written['salient.gin']}```" in page
    for path in written:
        assert path.rpartition("/")[2] in page


def test_the_change_replaces_only_the_function(tmp_path: Path) -> None:
    file = tmp_path / "mcframe_salient.py"
    before = render(Names.of("salient", "gistnet"), "gistnet")["mcframe_salient.py"]
    file.write_text(before, "utf-8")
    (change,) = (step for step in steps(PAGE.read_text("utf-8")) if step.language == "python")
    replace_function(file, change.text)
    after = file.read_text("utf-8")
    assert after != before
    assert change.text in after

    def others(source: str) -> list[str]:
        return [
            ast.dump(e) for e in ast.walk(ast.parse(source)) if isinstance(e, ast.FunctionDef) and e.name != "weights"
        ]

    assert others(after) == others(before)


def test_the_page_marks_the_commands_that_the_quick_form_skips() -> None:
    marks = {step.mark for step in steps(PAGE.read_text("utf-8"))}
    assert marks == {"", "setup", "install", "slow"}
