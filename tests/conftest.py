"""Fixtures of all tests: real runs, folders of third-party packages, and paths of the checkout."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Models in tests are too small for a second thread. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs of tests are not noted among the user's own.
os.environ["XDG_CONFIG_HOME"] = str(Path(tempfile.gettempdir()) / f"mcframe-tests-{os.getuid()}")

import pytest

pytest.register_assert_rewrite("tests.support")

from tests.support.forked_ranks import stop_server  # noqa: E402
from tests.support.launches import ROOT, SMOKE, Launches, Site, clean_environment  # noqa: E402

# Background jobs of a shell ignore Ctrl-C, and so would all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would ignore


LONG = ("test_compiled_step.py", "test_conformance.py", "test_planted_faults.py", "test_pretrained_weights.py")
"""Files that take ten seconds or more, without runs of the fixture `launches`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files and files that start runs first; short ones fill the time that is left."""
    slow = {item.path for item in items if "launches" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in slow and item.path.name not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exempt modules and tests from garbage collection: a full one would visit a million objects, for half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def exempt_imports() -> None:
    """Exempt what earlier files have imported, too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def read_entry_points_once() -> Iterator[None]:
    """Read the entry points of all packages again only after a change of a folder that holds some.

    Every load of gin files reads them, which takes a third of it.
    """
    from mcframe.registry import discovery  # the process that only distributes the tests needs no torch

    read, found = discovery.entry_points, {}

    def entry_points(**selected: str) -> Any:
        folders = tuple((path, Path(path).stat().st_mtime_ns) for path in sys.path if Path(path).is_dir())
        if folders not in found:
            found[folders] = read()
        return found[folders].select(**selected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "entry_points", entry_points)
        yield


@pytest.fixture(scope="session")
def launches(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Launches]:
    """Real runs, with a token cache of their own and without the user's settings."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "launches"  # of all workers of pytest-xdist
    folder.mkdir(exist_ok=True)
    yield Launches(folder, clean_environment(folder))
    stop_server()


@pytest.fixture(scope="session")
def new_site() -> type[Site]:
    """Constructor of a folder for plug-in packages that outlives a test."""
    return Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty folder for plug-in packages."""
    return Site(tmp_path / "site")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def smoke() -> Path:
    """The preset that takes seconds."""
    return SMOKE
