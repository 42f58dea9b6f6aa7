"""Table of docs/review.md, generated from the rules file. Run this file to write it into the page."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mcframe.review.rules import shipped

PAGE = Path(__file__).parents[2] / "docs" / "review.md"
_BETWEEN = re.compile(r"(<!-- rules -->\n).*?(<!-- end of rules -->)", re.S)
_RULE = re.compile(r"^\[(\w+)\](?:\s*# (.+))?$")
_KEY = re.compile(r"^(\w+) = (\S+)(?:\s*# (.+))?$")


def entries() -> list[tuple[str, str, str, str]]:
    """Return (rule, key, default, meaning) of every line of the rules file; a rule's own line has no key."""
    found, rule = [], ""
    for line in shipped().splitlines():
        if match := _RULE.match(line):
            rule = match[1]
            found.append((rule, "", "", match[2] or ""))
        elif match := _KEY.match(line):
            found.append((rule, match[1], match[2], match[3] or ""))
    return found


def table() -> str:
    """Return Markdown with a row for each rule and threshold."""
    rows = ["| rule | threshold | default | meaning |", "| --- | --- | --- | --- |"]
    severity = {rule: tomllib.loads(shipped())[rule].get("severity", "") for rule, key, _, _ in entries() if not key}
    for rule, key, default, meaning in entries():
        if not key:
            rows.append(f"| **`{rule}`** | | {severity[rule]} | {meaning} |")
        elif key not in ("enabled", "severity"):
            rows.append(f"| | `{key}` | {default} | {meaning} |")
    return "\n".join([*rows, ""])


def with_table(page: str) -> str:
    """Return the page with the table between its marks."""
    text, count = _BETWEEN.subn(lambda found: found[1] + table() + found[2], page)
    assert count == 1, "docs/review.md needs one pair of table marks"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
