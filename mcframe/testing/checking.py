"""Checks of a plug-in against the requirements of its kind, with or without pytest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mcframe.errors import UserError
from mcframe.registry.plugins import Registry
from mcframe.testing.assertions import Skipped, describe
from mcframe.testing.plugin_under_test import PluginUnderTest, find, installed_plugins
from mcframe.testing.requirements import BUILT, Requirement, requirements_of

Outcome = Literal["passed", "failed", "skipped", "known failure"]


@dataclass(frozen=True)
class Result:
    """Result of one requirement.

    Attributes:
        requirement: The id.
        title: The behaviour in one sentence.
        outcome: "failed" also if a known failure passes.
        message: The observation of a failure, or the reason of a skip or a known failure.
        seconds: The duration of the check.
    """

    requirement: str
    title: str
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0


def check_plugin(
    name: str,
    settings: Sequence[str] = (),
    *,
    plugins: Sequence[str] = (),
    registry: Registry | None = None,
    slow: bool = False,
    only: Iterable[str] = (),
    known_failures: Mapping[str, str] | None = None,
    width: int = 16,
) -> list[Result]:
    """Check a registered plug-in against every requirement of its kind, in order.

    Args:
        name: `kind.name`.
        settings: gin bindings to build it with.
        plugins: Plug-ins that are not installed, as `--plugin` names them.
        registry: The registry that holds it. Default: what is installed, and `plugins`.
        slow: Whether to check requirements that start processes or compile.
        only: Ids of requirements. Default: all.
        known_failures: Reasons by id of requirement. One that passes is a failure.
        width: D of the models that it is built for.

    Raises:
        UserError: The name is unknown, or an id is none of this kind.
    """
    plugin = find(name, settings, registry=registry or installed_plugins(tuple(plugins)), width=width)
    known, selected = dict(known_failures or {}), set(only)
    check_ids([*known, *selected], plugin.kind)
    broken: dict[str, str] = {}
    return [
        check_requirement(plugin, each, broken, known.get(each.id))
        for each in requirements_of(plugin.kind)
        if (slow or not each.slow) and (not selected or each.id in selected)
    ]


def missing_settings(results: Sequence[Result]) -> str:
    """Return the settings without which the plug-in was not built, as a sentence; empty if it was built."""
    return next((each.message for each in results if each.requirement == BUILT and each.outcome == "skipped"), "")


def check_ids(ids: Iterable[str], kind: str) -> None:
    """Raise UserError unless all are ids of requirements of this kind."""
    unknown = set(ids) - {each.id for each in requirements_of(kind)}
    if unknown:
        raise UserError(
            f"{', '.join(sorted(unknown))}: no such requirement for a {kind}",
            remedy="use an id of docs/conformance.md",
        )


def check_requirement(
    plugin: PluginUnderTest, requirement: Requirement, broken: dict[str, str], known: str | None = None
) -> Result:
    """Run one check.

    Args:
        plugin: The plug-in.
        requirement: The requirement.
        broken: Requirements that failed so far or depend on one that failed, with the id of the failure; extended here.
        known: The reason of a known failure. Requirements that depend on it are still checked.
    """
    started = time.perf_counter()
    outcome, message = _run(plugin, requirement, broken)
    if outcome == "failed" and known is None:
        broken[requirement.id] = requirement.id
    if known is not None and outcome == "failed":
        outcome, message = "known failure", known
    elif known is not None and outcome == "passed":
        outcome, message = "failed", f"it passes; remove it from known_failures ({known})"
    return Result(requirement.id, requirement.title, outcome, message, time.perf_counter() - started)


def _run(plugin: PluginUnderTest, requirement: Requirement, broken: dict[str, str]) -> tuple[Outcome, str]:
    if cause := next((broken[id] for id in requirement.after if id in broken), None):
        broken[requirement.id] = cause
        return "skipped", f"cannot be checked while {cause} fails"
    try:
        if not requirement.id.startswith("P") and (reason := plugin.missing_settings):
            return "skipped", reason
        if requirement.needs and not requirement.needs.has(plugin.specimen):
            return "skipped", requirement.needs.otherwise
        requirement.run(plugin)
    except Skipped as skip:
        return "skipped", str(skip)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code can raise anything; it is the result
        return "failed", describe(error)
    return "passed", ""
