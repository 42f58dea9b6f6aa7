"""One class a kind for pytest: a test for every clause, thin over the checks that need no pytest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from mcframe.testing.checking import check_clause, check_ids
from mcframe.testing.plugin_under_test import find, installed_plugins
from mcframe.testing.requirements import Requirement, clauses_of

SILENCING = {"skip", "skipif", "xfail"}
"""Marks after which nobody hears of a check."""


class RequirementSuite:
    """What all contracts share. Inherit the one of your kind, and give `plugin`.

    settings        gin bindings to build it with, such as ("gistnet.mine.layers = 1",)
    plugins         plug-ins that are not installed, as `--plugin` names them
    known_failures  clause id -> the reason; a known failure that passes fails
    width           D of the models that it is built for
    """

    kind: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    plugins: ClassVar[tuple[str, ...]] = ()
    known_failures: ClassVar[Mapping[str, str]] = {}
    width: ClassVar[int] = 16
    _broken: ClassVar[dict[str, dict[str, str]]]

    @pytest.fixture
    def plugin(self) -> str:
        """The registered name, `kind.name`. The one fixture to supply."""
        raise NotImplementedError(f'{type(self).__name__} has no fixture `plugin` that returns "{self.kind}.NAME"')

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._broken = {}
        if "kind" not in cls.__dict__:  # somebody's own test class
            _check_guarded(cls)

    def test_every_clause_is_checked(self) -> None:
        """No check was deleted or overridden, and every known failure has a reason."""
        _check_guarded(type(self))


def _test_of(clause: Requirement) -> Any:
    def test(self: RequirementSuite, plugin: str, request: pytest.FixtureRequest) -> None:
        if clause.slow and not request.config.getoption("--mcframe-slow", default=False):
            pytest.skip("slow: run with --mcframe-slow")
        candidate = find(plugin, self.settings, registry=installed_plugins(tuple(self.plugins)), width=self.width)
        assert candidate.kind == self.kind, f"{plugin} is no {self.kind}: inherit the contract of its kind"
        broken = self._broken.setdefault(plugin, {})
        result = check_clause(candidate, clause, broken, self.known_failures.get(clause.id))
        if result.outcome == "failed":
            pytest.fail(f"{plugin} breaks {clause.id}, {clause.title}:\n{result.message}", pytrace=False)
        elif result.outcome == "skipped" and clause.id == "P8":  # tests that are all skipped pass for tests that pass
            if reason := self.known_failures.get(clause.id):
                pytest.xfail(reason)
            pytest.fail(f"{plugin} was never built: {result.message}; give it in `settings`", pytrace=False)
        elif result.outcome == "skipped":
            pytest.skip(result.message)
        elif result.outcome == "known failure":
            pytest.xfail(result.message)

    test.__doc__ = f"{clause.title}."
    test.__name__, test.__qualname__ = clause.name, f"Contract.{clause.name}"
    test.clause = clause  # type: ignore[attr-defined]
    return test


def _contract(name: str, kind: str) -> Any:
    tests = {each.name: _test_of(each) for each in clauses_of(kind)}
    doc = f"Every clause that is asked of a {kind}; see docs/conformance.md."
    return type(name, (RequirementSuite,), {"kind": kind, "__doc__": doc, "__module__": __name__, **tests})


def _check_guarded(cls: type[RequirementSuite]) -> None:
    """Raise TypeError where a check is missing, replaced or marked, or a known failure has no reason."""
    for each in clauses_of(cls.kind):
        found = getattr(cls, each.name, None)
        marks = {mark.name for mark in getattr(found, "pytestmark", ())} & SILENCING
        said = f"marked {', '.join(sorted(marks))}" if marks else "deleted or overridden"
        if marks or found is not vars(CONTRACTS[cls.kind])[each.name]:
            raise TypeError(
                f"{cls.__name__}.{each.name} is {said}; where the plug-in is known to break "
                f'{each.id}, say so: known_failures = {{"{each.id}": "the reason"}}'
            )
    check_ids(cls.known_failures, cls.kind)
    for id, reason in cls.known_failures.items():
        if not isinstance(reason, str) or not reason.strip():
            raise TypeError(f"{cls.__name__}.known_failures: {id} has no reason")


GistNetContract: Any = _contract("GistNetContract", "gistnet")
LensNetContract: Any = _contract("LensNetContract", "lensnet")
AllocatorContract: Any = _contract("AllocatorContract", "allocator")
VariantsContract: Any = _contract("VariantsContract", "variants")
TextSourceContract: Any = _contract("TextSourceContract", "text")
TokenizerContract: Any = _contract("TokenizerContract", "tokenizer")
TaskContract: Any = _contract("TaskContract", "task")
LossContract: Any = _contract("LossContract", "loss")
PositionsContract: Any = _contract("PositionsContract", "positions")
EvaluationContract: Any = _contract("EvaluationContract", "evaluation")
LoggerContract: Any = _contract("LoggerContract", "logger")
CallbackContract: Any = _contract("CallbackContract", "callback")

CONTRACTS: Mapping[str, type[RequirementSuite]] = {each.kind: each for each in RequirementSuite.__subclasses__()}
"""The contract of every kind."""
