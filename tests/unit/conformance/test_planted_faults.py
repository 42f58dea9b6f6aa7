"""Each broken plug-in is rejected by the clause meant for it and by no other; every clause rejects one."""

import gc
import tempfile

import pytest

from mcframe.registry.plugins import KINDS, Registry
from mcframe.testing import check_plugin, every_clause, reference
from tests.support import (
    broken_additions,  # noqa: F401
    broken_allocators,  # noqa: F401
    broken_data,  # noqa: F401
    broken_gistnets,  # noqa: F401
    broken_lensnets,
    broken_packages,
    broken_variants,  # noqa: F401
)
from tests.support.planted import BREAKS, REFERENCES, Broken

BREAKS["gistnet.unversioned"] = "P6"
REFERENCES += ["gistnet.linear", "lensnet.linear", "allocator.lowest_first", "variants.random_nodes"]


@pytest.fixture(scope="module")
def registry():
    found = Registry()
    found.register_plugin(Broken(), "broken")
    found.register_plugin(broken_packages.StatesNoVersion(), "unversioned")
    found.register_plugin(reference, "reference")
    return found


@pytest.fixture(autouse=True)
def no_hook_stays():
    yield
    while broken_lensnets.HOOKS:
        broken_lensnets.HOOKS.pop().remove()


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_plugin_is_rejected_by_its_clause_alone(name, registry):
    failed = {each.clause: each.message for each in check_plugin(name, registry=registry) if each.outcome == "failed"}
    assert list(failed) == [BREAKS[name]], failed
    assert len(failed[BREAKS[name]]) > 10


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_keeps_every_clause(name, registry):
    results = check_plugin(name, registry=registry)
    assert {each.clause: each.message for each in results if each.outcome == "failed"} == {}


def test_no_folder_of_a_logger_stays(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (name,) = [name for name in REFERENCES if name.startswith("logger.")]
    check_plugin(name, registry=registry)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_every_kind_has_a_reference():
    assert {name.partition(".")[0] for name in REFERENCES} == set(KINDS)


def test_every_quick_clause_rejects_something():
    quick = {each.id for each in every_clause().values() if not each.slow}
    assert quick - set(BREAKS.values()) == set()
