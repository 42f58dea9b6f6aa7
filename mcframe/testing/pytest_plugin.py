"""What pytest learns from mcframe: `--mcframe-slow`, and the marker of the checks that wait for it.

Published under the entry point `pytest11`, so it is loaded in every pytest session where mcframe is installed: it
imports nothing but pytest.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    group = parser.getgroup("mcframe", "mcframe's conformance kit")
    group.addoption("--mcframe-slow", action="store_true", help="Also the clauses that start processes or compile.")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "mcframe_slow: a clause that starts processes or compiles (--mcframe-slow)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow clauses, so that `-m mcframe_slow` selects them."""
    for item in items:
        clause = getattr(getattr(item, "function", None), "clause", None)
        if clause is not None and clause.slow:
            item.add_marker("mcframe_slow")
