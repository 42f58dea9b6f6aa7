"""docs/dependencies.md has a line with a reason for every dependency."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_each_dependency_has_a_line_and_each_line_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]}  # type: ignore[index]
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    at_run_time, for_development = page.split("## For development")
    reasons = re.compile(r"^\| `([\w.-]+)` \| (.+) \|$", re.M)
    assert {name for name, _ in reasons.findall(at_run_time)} == declared
    assert all(len(reason) > 10 for _, reason in reasons.findall(page))
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    explained = {name for name, _ in reasons.findall(page)}
    assert set(pinned) - explained == set(), "constraints.txt pins what docs/dependencies.md does not explain"
    assert for_development
