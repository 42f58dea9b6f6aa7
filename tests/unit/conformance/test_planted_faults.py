"""Each broken plug-in is rejected by the requirement meant for it alone, and each requirement rejects one."""

import gc
import tempfile

import pytest

from mcframe.registry.plugins import Registry
from mcframe.testing import all_requirements, check_plugin, examples, reference
from mcframe.testing.kinds import BUILT_BY_KIT
from mcframe.testing.requirements import requirements_of
from tests.support import (
    broken_additions,  # noqa: F401
    broken_allocators,  # noqa: F401
    broken_bases,  # noqa: F401
    broken_data,  # noqa: F401
    broken_gistnets,  # noqa: F401
    broken_lensnets,
    broken_packages,
    broken_variants,  # noqa: F401
)
from tests.support.planted import BREAKS, CONFORMING, Broken

BREAKS["gistnet.unversioned"] = "P4"
FIRST = set({id: name for name, id in reversed(BREAKS.items())}.values())
"""One fault of each requirement."""
MATRIX = pytest.mark.matrix
CONFORMING += ["gistnet.linear", "lensnet.linear", "allocator.lowest_first", "variants.random_nodes"]


@pytest.fixture(scope="module")
def registry():
    found = Registry()
    found.register_plugin(Broken(), "broken")
    found.register_plugin(broken_packages.StatesNoVersion(), "unversioned")
    found.register_plugin(reference, "reference")
    return found


@pytest.fixture(autouse=True)
def no_shrinking(monkeypatch):
    """The requirement that fails does not depend on the size of the example that fails."""
    monkeypatch.setattr(examples, "PHASES", examples.PHASES[:-1])


@pytest.fixture(autouse=True)
def remove_hooks():
    yield
    while broken_lensnets.HOOKS:
        broken_lensnets.HOOKS.pop().remove()


def failures(name, registry, only=()):
    results = check_plugin(name, registry=registry, only=only)
    return {each.requirement: each.message for each in results if each.outcome == "failed"}


def affected(id, kind):
    """Return the requirements of a kind that a fault of requirement `id` could break, too.

    Names and documentation do not affect the behaviour, and few faults affect compilation and training.
    """
    ids = [each.id for each in requirements_of(kind) if not each.slow]
    if id in ("P1", "P2", "P3", "P4", "P5"):
        return [each for each in ids if each.startswith("P")]
    return [each for each in ids if each not in ("N2", "N5") or each[0] == id[0]]


def up_to(id):
    """Return a requirement and all that it depends on."""
    return {id}.union(*(up_to(each) for each in all_requirements()[id].after))


@pytest.mark.parametrize("name", [name for name in BREAKS if name not in FIRST])
def test_fault_is_rejected_by_its_requirement(name, registry):
    kind = name.partition(".")[0]
    failed = failures(name, registry, up_to(BREAKS[name]) & {each.id for each in requirements_of(kind)})
    assert list(failed) == [BREAKS[name]], failed


@pytest.mark.parametrize("name", [name if name in FIRST else pytest.param(name, marks=MATRIX) for name in BREAKS])
def test_fault_is_rejected_by_its_requirement_alone(name, registry):
    failed = failures(name, registry, affected(BREAKS[name], name.partition(".")[0]))
    assert list(failed) == [BREAKS[name]], failed


@pytest.mark.parametrize("name", CONFORMING)
def test_conforming_plugin_is_accepted(name, registry):
    assert failures(name, registry) == {}


def test_folder_of_a_logger_is_deleted(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_plugin("logger.keeps", registry=registry)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_every_kind_and_requirement_is_covered():
    assert {name.partition(".")[0] for name in CONFORMING} == set(BUILT_BY_KIT)
    assert {each.id for each in all_requirements().values() if not each.slow} == set(BREAKS.values())
