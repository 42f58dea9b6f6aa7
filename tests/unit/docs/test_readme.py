"""The README's picture, experiment and architecture, the tables of docs/commands.md, and the links of every page."""

from __future__ import annotations

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.context.context_tree import ContextTree
from mcframe.metrics.context_text import key, strip

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/plugins").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """Return the anchors of headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


def test_the_picture_is_what_the_program_prints() -> None:
    tree = ContextTree(window=128, block_size=4, levels=2, tail=16)
    assert key(tree).plain in README
    rows = re.findall(r"^(?:focused|random ) ([·\d|]+)  (.+)$", README, re.M)
    assert len(rows) == 3
    for row, counted in rows:
        focus = [0 if mark == "·" else int(mark) for mark in row.replace("|", "")]
        assert strip(focus, tree) == f"{row}  {counted}"


def test_the_first_experiment_loads(tmp_path: Path) -> None:
    found = re.search(r"```gin\n(.*?)```", README, re.S)
    assert found
    lines = found[1].strip().splitlines()
    assert len(lines) == 3
    (tmp_path / "mine.gin").write_text(found[1], "utf-8")
    loaded = load_run_config([tmp_path / "mine.gin"], [])
    assert loaded.run_config.context.length_end == 0.6
    assert loaded.config.as_dict()["gistnet.transformer.pooling"] == "query"


def test_every_preset_is_listed() -> None:
    for preset in (ROOT / "gin").glob("*.gin"):
        assert f"`gin/{preset.name}`" in COMMANDS
    for named in re.findall(r"`gin/([\w/]+\.gin)`", README + COMMANDS):
        assert (ROOT / "gin" / named).exists(), named


def test_every_command_is_listed() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {group.name for group in app.registered_groups if group.name}
    missing = [name for name in names - {"version"} if not re.search(rf"`mcframe {name}[ `]", COMMANDS)]
    assert missing == []


def test_the_environments_that_pages_name_exist() -> None:
    tox = ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", "utf-8")
    for page in PAGES:
        for name in re.findall(r"tox -e (\w+)", page.read_text("utf-8")):
            assert tox.has_section(f"testenv:{name}"), f"{page.name}: tox -e {name}"


def test_every_folder_of_the_package_is_in_the_architecture_picture() -> None:
    picture = re.search(r"```mermaid\n(.*?)```", README, re.S)
    assert picture
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    for package in packages:
        top, _, below = package.partition(".")
        if top == "mcframe" and below:
            assert f'"mcframe/{below.replace(".", "/")}/<br>' in picture[1], package
