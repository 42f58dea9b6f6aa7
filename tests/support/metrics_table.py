"""Write the table of docs/metrics.md from the catalogue: `python tests/support/metrics_table.py`."""

from __future__ import annotations

import re
from pathlib import Path

from mcframe.metrics.catalogue import CATALOGUE

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_BETWEEN = re.compile(r"(<!-- table -->\n).*?(<!-- end of table -->)", re.S)


def table() -> str:
    """Return a Markdown table with a row for each metric, in the order of the catalogue."""
    rows = [f"| `{m.name}` | {m.unit} | {m.better} | {m.meaning} |" for m in CATALOGUE]
    return "\n".join(["| name | unit | better | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def with_table(page: str) -> str:
    """Return the page with the current table."""
    text, count = _BETWEEN.subn(lambda found: found[1] + table() + found[2], page)
    assert count == 1, "docs/metrics.md: expected one pair of table marks"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
