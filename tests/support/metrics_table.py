"""The table of docs/metrics.md, made from the catalogue. Run this file to write it into the page."""

from __future__ import annotations

import re
from pathlib import Path

from mcframe.metrics.catalogue import CATALOGUE

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_BETWEEN = re.compile(r"(<!-- table -->\n).*?(<!-- end of table -->)", re.S)


def table() -> str:
    """Markdown, a row a metric, in the order of the catalogue."""
    rows = [f"| `{m.name}` | {m.unit} | {m.better} | {m.meaning} |" for m in CATALOGUE]
    return "\n".join(["| name | unit | better | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def with_table(page: str) -> str:
    """The page with the table in its place."""
    text, places = _BETWEEN.subn(lambda found: found[1] + table() + found[2], page)
    assert places == 1, "docs/metrics.md needs one pair of table marks"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
