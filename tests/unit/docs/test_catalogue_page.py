"""docs/catalogue.md has every plug-in of ours with all its parameters and no other; its example is built."""

import inspect
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import all_plugins

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "catalogue.md").read_text("utf-8")
SECTIONS = {"allocator": "Allocators", "gistnet": "GistNets", "lensnet": "LensNets"}
SECTIONS |= {"variants": "Variant strategies", "loss": "Losses"}


def rows(kind):
    """Name -> cells of the first table in the kind's section."""
    section = PAGE.split(f"\n## {SECTIONS[kind]}\n")[1].split("\n## ")[0].split("\n### ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "]
    return {row[0].strip("`"): row[1:] for row in cells[2:]}


def ours(kind):
    entries = all_plugins().implementations[kind]
    return {name: e.factory for name, e in entries.items() if e.factory.__module__.startswith("mcframe_plugins.")}


def parameters(factory):
    """What gin may bind."""
    return [n for n, p in inspect.signature(factory).parameters.items() if p.kind is p.KEYWORD_ONLY]


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_table_has_every_plug_in_and_all_its_parameters(kind):
    table, offered = rows(kind), ours(kind)
    assert set(table) == set(offered)
    for name, (does, after, named) in table.items():
        assert does, name
        assert after, name
        listed = re.findall(r"`(\w+)`", named)
        if "those of `greedy`" in named:
            listed = [*listed[:-1], *parameters(offered["greedy"])]
        assert listed == parameters(offered[name]), name


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_parameter_is_explained_where_it_is_defined(kind):
    for name, factory in ours(kind).items():
        module = inspect.getmodule(factory)
        assert len((module.__doc__ or "").split()) >= 8, name
        for parameter in parameters(factory):
            assert re.search(rf"\b{parameter}\b", factory.__doc__), f"{kind}.{name}.{parameter}"


def test_the_example_is_built(tmp_path):
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


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
