"""The example and the sweep of docs/catalogue.md; its tables are tested in test_generated_pages."""

import re
from pathlib import Path

from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.training.flops import StepFlops
from tests.support.forked_ranks import uncounted

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "catalogue.md").read_text("utf-8")


def test_the_example_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(StepFlops, "_run", uncounted)
    example = re.search(r"```gin\n(.*?)```", PAGE, re.DOTALL).group(1)
    (tmp_path / "mine.gin").write_text(example, "utf-8")
    checked = CliRunner().invoke(app, ["check", str(tmp_path / "mine.gin")])
    assert checked.exit_code == 0, checked.output
    assert "allocator.hierarchical" in checked.output
    assert "lensnet.mlp" in checked.output


def test_the_grid_that_it_names_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (grid,) = re.findall(r"^mcframe sweep (\S+)", PAGE, re.MULTILINE)
    listed = CliRunner().invoke(app, ["sweep", grid, "--list"])
    assert listed.exit_code == 0, listed.output
    assert "transformer_surprise" in listed.output
