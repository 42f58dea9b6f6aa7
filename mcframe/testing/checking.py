"""Running the checks of a plug-in, with or without pytest around them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mcframe.errors import UserError
from mcframe.registry.plugins import Registry
from mcframe.testing.capabilities import CAPABILITIES
from mcframe.testing.plugin_under_test import PluginUnderTest, find, installed_plugins
from mcframe.testing.requirements import NotConforming, Requirement, Skipped, clauses_of, in_words

Outcome = Literal["passed", "failed", "skipped", "known failure"]


@dataclass(frozen=True)
class Result:
    """What came of one clause.

    outcome  failed also where a known failure passes
    message  what was seen where it failed, the reason where it was skipped or is known; else empty
    """

    clause: str
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
    """Check a registered plug-in against every clause of its kind, in order.

    name            `kind.name`
    settings        gin bindings to build it with
    plugins         plug-ins that are not installed, as `--plugin` names them
    registry        where to look it up; None: what is installed, and `plugins`
    slow            also the clauses that start processes or compile
    only            ids of clauses; empty = all
    known_failures  clause id -> reason; one that passes is a failure
    width           D of the models that it is built for

    Raises UserError where nobody offers the name, or a clause is not one of this kind.
    """
    candidate = find(name, settings, registry=registry or installed_plugins(tuple(plugins)), width=width)
    known, clauses = dict(known_failures or {}), clauses_of(candidate.kind)
    asked = set(only)
    check_ids([*known, *asked], candidate.kind)
    wanted = [each for each in clauses if (slow or not each.slow) and each.id in (asked or {each.id})]
    broken: dict[str, str] = {}
    return [check_clause(candidate, each, broken, known.get(each.id)) for each in wanted]


def waits_for(results: Sequence[Result]) -> str:
    """For which settings it waits, so that its papers alone were looked at; empty where it was tried."""
    return next((each.message for each in results if each.clause == "P8" and each.outcome == "skipped"), "")


def check_ids(ids: Iterable[str], kind: str) -> None:
    """Raise UserError unless all are ids of clauses of this kind."""
    asked = {each.id for each in clauses_of(kind)}
    unknown = [id for id in ids if id not in asked]
    if unknown:
        raise UserError(
            f"{', '.join(unknown)}: no such clause for a {kind}", remedy="docs/conformance.md lists the clauses"
        )


def check_clause(
    candidate: PluginUnderTest, clause: Requirement, broken: dict[str, str], known: str | None = None
) -> Result:
    """Run one check.

    broken  clauses that are broken so far, or mean nothing, and the one that is to blame; this one may join them
    known   why it is known to fail; what builds upon it is checked all the same, or one word would excuse it all
    """
    started = time.perf_counter()
    outcome, message = _run(candidate, clause, broken)
    if outcome == "failed" and known is None:
        broken[clause.id] = clause.id
    if known is not None and outcome == "failed":
        outcome, message = "known failure", known
    elif known is not None and outcome == "passed":
        outcome, message = "failed", f"it is said to fail ({known}) and passes: take it out of known_failures"
    return Result(clause.id, clause.title, outcome, message, time.perf_counter() - started)


def _run(candidate: PluginUnderTest, clause: Requirement, broken: dict[str, str]) -> tuple[Outcome, str]:
    if blamed := next((broken[id] for id in clause.after if id in broken), None):
        broken[clause.id] = blamed
        return "skipped", f"means nothing while {blamed} fails"
    try:
        if not clause.id.startswith("P") and candidate.waits:
            return "skipped", candidate.waits
        if clause.needs and not candidate.has(clause.needs):
            return "skipped", CAPABILITIES[clause.needs].otherwise
        clause.check(candidate)
    except Skipped as reason:
        return "skipped", str(reason)
    except NotConforming as failure:
        return "failed", str(failure)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's code can raise anything; it is the finding
        return "failed", in_words(error)
    return "passed", ""
