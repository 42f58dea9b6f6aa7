"""pytest plug-in of mcframe: the option `--mcframe-slow` and the marker of slow requirements.

Loaded through the entry point `pytest11` in every pytest session, so it imports only pytest.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    group = parser.getgroup("mcframe", "mcframe's conformance kit")
    group.addoption("--mcframe-slow", action="store_true", help="Also requirements that start processes or compile.")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "mcframe_slow: starts processes or compiles (--mcframe-slow)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow requirements, so that `-m mcframe_slow` selects them."""
    for item in items:
        requirement = getattr(getattr(item, "function", None), "requirement", None)
        if requirement is not None and requirement.slow:
            item.add_marker("mcframe_slow")
