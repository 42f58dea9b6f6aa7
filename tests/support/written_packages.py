"""Packages of every kind as `mcframe new-plugin` writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcframe.scaffold.kinds import TEMPLATES
from mcframe.scaffold.names import Names
from mcframe.scaffold.package import render, write


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of a new package `probe-KIND` by kind."""
    folder = tmp_path_factory.mktemp("packages")
    written = {}
    for kind in TEMPLATES:
        names = Names.of(f"probe-{kind}", kind)
        written[kind] = folder / names.package
        write(written[kind], render(names, kind))
    return written
