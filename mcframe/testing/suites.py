"""Requirement suites for pytest: one class a kind, with one test a requirement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from mcframe.testing.checking import check_ids, check_requirement
from mcframe.testing.kinds import SUITES
from mcframe.testing.plugin_under_test import find, installed_plugins
from mcframe.testing.requirements import BUILT, Requirement, requirements_of

SILENCING = {"skip", "skipif", "xfail"}
"""Marks that hide the result of a check."""


class RequirementSuite:
    """Base of all suites. Derive from the one of the kind and define the fixture `plugin`.

    Attributes:
        settings: gin bindings to build the plug-in with, such as ("gistnet.mine.layers = 1",).
        plugins: Plug-ins that are not installed, as `--plugin` names them.
        known_failures: Reasons by id of requirement. A known failure that passes fails.
        width: D of the models that it is built for.
    """

    kind: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    plugins: ClassVar[tuple[str, ...]] = ()
    known_failures: ClassVar[Mapping[str, str]] = {}
    width: ClassVar[int] = 16
    _broken: ClassVar[dict[str, dict[str, str]]]

    @pytest.fixture
    def plugin(self) -> str:
        """Return the registered name, `kind.name`."""
        raise NotImplementedError(f'{type(self).__name__} has no fixture `plugin` that returns "{self.kind}.NAME"')

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._broken = {}
        if "kind" not in cls.__dict__:  # a user's test class
            _check_complete(cls)

    def test_no_requirement_is_disabled(self) -> None:
        """No check was deleted, overridden or marked, and every known failure has a reason."""
        _check_complete(type(self))


def _test_of(requirement: Requirement) -> Any:
    def test(self: RequirementSuite, plugin: str, request: pytest.FixtureRequest) -> None:
        if requirement.slow and not request.config.getoption("--mcframe-slow", default=False):
            pytest.skip("slow: run with --mcframe-slow")
        found = find(plugin, self.settings, registry=installed_plugins(tuple(self.plugins)), width=self.width)
        assert found.kind == self.kind, f"expected a {self.kind}, got {plugin}: derive from the suite of its kind"
        broken, known = self._broken.setdefault(plugin, {}), self.known_failures.get(requirement.id)
        result = check_requirement(found, requirement, broken, known)
        if result.outcome == "failed":
            pytest.fail(f"{plugin} breaks {requirement.id}, {requirement.title}:\n{result.message}", pytrace=False)
        if result.outcome == "skipped" and requirement.id == BUILT and not known:
            # A suite whose tests are all skipped would look like one that passes.
            pytest.fail(f"{plugin} was not built: {result.message}; add it to `settings`", pytrace=False)
        if result.outcome == "known failure" or (known and requirement.id == BUILT):
            pytest.xfail(known or "")
        if result.outcome == "skipped":
            pytest.skip(result.message)

    test.__doc__ = f"{requirement.title}."
    test.__name__, test.__qualname__ = requirement.name, f"RequirementSuite.{requirement.name}"
    test.requirement = requirement  # type: ignore[attr-defined]
    return test


def _suite(name: str, kind: str) -> type[RequirementSuite]:
    tests = {each.name: _test_of(each) for each in requirements_of(kind)}
    doc = f"The requirements of kind {kind}; see docs/conformance.md."
    return type(name, (RequirementSuite,), {"kind": kind, "__doc__": doc, "__module__": __name__, **tests})


def _check_complete(cls: type[RequirementSuite]) -> None:
    """Raise TypeError if a check is missing, replaced or marked, or a known failure has no reason."""
    for each in requirements_of(cls.kind):
        found = getattr(cls, each.name, None)
        marks = {mark.name for mark in getattr(found, "pytestmark", ())} & SILENCING
        if marks or found is not vars(BY_KIND[cls.kind])[each.name]:
            reason = f"marked {', '.join(sorted(marks))}" if marks else "deleted or overridden"
            raise TypeError(
                f"{cls.__name__}.{each.name} is {reason}; declare a known failure instead: "
                f'known_failures = {{"{each.id}": "the reason"}}'
            )
    check_ids(cls.known_failures, cls.kind)
    for id, reason in cls.known_failures.items():
        if not isinstance(reason, str) or not reason.strip():
            raise TypeError(f"{cls.__name__}.known_failures: {id} has no reason")


BY_KIND: Mapping[str, type[RequirementSuite]] = {kind: _suite(name, kind) for name, kind in SUITES.items()}
"""The suite of every kind."""


def __getattr__(name: str) -> type[RequirementSuite]:
    """Return the suite of this name."""
    if name not in SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return BY_KIND[SUITES[name]]
