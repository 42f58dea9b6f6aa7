"""Every name of mcframe that the scaffold and the examples of docs/plugins import is documented there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "plugins"
PAGES = [page.read_text("utf-8") for page in FOLDER.glob("*.md")]
_FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)


def imported(code):
    """Return the names that are imported from mcframe."""
    statements = re.findall(r"^from mcframe[\w.]* import (?:\([^)]*\)|.*)$", code, re.M)
    nodes = [ast.parse(statement).body[0] for statement in statements if "$" not in statement]
    return {alias.name for node in nodes for alias in node.names}


def code_in_prose(page):
    """Return the code of a page between backticks, and its blocks that show an interface: those without imports."""
    blocks = [block for block in _FENCED.findall(page) if "import" not in block]
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", _FENCED.sub("", page))])


def test_names_are_documented():
    templates = (ROOT / "mcframe" / "scaffold" / "templates").rglob("*.tmpl")
    names = set().union(*map(imported, [*(path.read_text("utf-8") for path in templates), *PAGES]))
    assert len(names) > 40
    documented = set(re.findall(r"\w+", "\n".join(map(code_in_prose, PAGES))))
    assert sorted(names - documented) == []


@pytest.mark.parametrize("page", ["allocator", "lensnet"])
def test_the_age_may_be_none(page):
    assert re.search(r"`context\.age[^|]*None", (FOLDER / f"{page}.md").read_text("utf-8"))
