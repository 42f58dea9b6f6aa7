"""Packages of every kind as `mcframe new-plugin` writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcframe.scaffold.kinds import KINDS
from mcframe.scaffold.names import Names
from mcframe.scaffold.package import render, write


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a new package for each kind, all called `probe-KIND`."""
    folder = tmp_path_factory.mktemp("packages")
    written = {}
    for kind in KINDS:
        names = Names.of(f"probe-{kind}", kind)
        written[kind] = folder / names.package
        write(written[kind], render(names, kind))
    return written
