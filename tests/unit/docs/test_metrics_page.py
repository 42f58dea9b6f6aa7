"""docs/metrics.md holds the catalogue's table as it is now."""

from __future__ import annotations

from tests.support.metrics_table import PAGE, with_table


def test_the_page_holds_the_generated_table() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_table(page), "run python tests/support/metrics_table.py"
