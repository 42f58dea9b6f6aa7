"""Every registered plug-in through the conformance kit and through training, and pairs of them together.

Trainings go on beside the checks of this process; they share starts of the launcher.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mcframe.config.run_config import load_run_config
from mcframe.registry.plugins import Registered, Registry
from mcframe.testing.checking import Result, check_plugin, waits_for
from mcframe.testing.cross import Case
from mcframe.testing.plugin_under_test import PluginUnderTest, find
from mcframe.testing.requirements import NotConforming, Skipped, clauses_of
from mcframe.testing.runs import alone, on_two_ranks
from mcframe.testing.trainings import Trained, Training, stop, trained

COMPILING = ("R7",)
"""Clauses that take half a minute or more: in the full form alone."""

ON_TWO_RANKS = ("R4", "R5", "R6")
"""Clauses that the quick form asks of one plug-in of a kind."""

_LOCAL = "a local file"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    settings  full name -> gin bindings that the plug-in needs
    left_out  full name -> why it is neither checked nor trained
    cases     plug-ins to train together
    full      two ranks and the compiler for every plug-in, not for one of a kind
    """

    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    cases: Sequence[Case] = ()
    full: bool = False


@dataclass(frozen=True)
class Row:
    """What came of a plug-in, or of a case.

    results  of its clauses; of a case none
    loss     of the last step of its training; None where it was not trained
    error    why a case failed, or why nothing was built or done; empty else
    seconds  of its checks and trainings
    """

    name: str
    package: str
    results: Sequence[Result] = ()
    loss: float | None = None
    error: str = ""
    left_out: bool = False
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return (bool(self.error) and not self.left_out) or bool(self.of("failed"))

    def of(self, outcome: str) -> list[Result]:
        """The clauses that ended so."""
        return [each for each in self.results if each.outcome == outcome]


def run_matrix(registry: Registry, entries: Sequence[Registered], plan: Plan, say: Say) -> list[Row]:
    """Check and train the entries and cases. `say` is told how it goes on, a line at a time."""
    names = [f"{each.kind}.{each.name}" for each in entries]
    found = [find(name, plan.settings.get(name, ()), registry=registry) for name in names]
    candidates = {each.name: each for each in found if each.name not in plan.left_out}
    thorough = set(candidates) if plan.full else set(_one_of_each_kind(candidates))
    with ThreadPoolExecutor(1) as beside:
        training = beside.submit(_train, candidates, thorough, plan, say)
        try:
            quick = {name: _quick(each, say) for name, each in candidates.items()}
            training.result()
        except BaseException:  # a Ctrl-C; the trainings would go on to their end
            stop()
            raise
    rows = [
        _row(each, quick[each.name], thorough=each.name in thorough, plan=plan)
        if each.name in candidates
        else Row(each.name, each.entry.distribution, error=plan.left_out[each.name], left_out=True)
        for each in found
    ]
    return rows + [_case_row(case) for case in plan.cases]


def _one_of_each_kind(candidates: Mapping[str, PluginUnderTest]) -> list[str]:
    """Of every kind the one that the preset of short trainings chooses, else the first."""
    preset = load_run_config(["smoke.gin"], []).config.as_dict()
    usual = {str(value).removeprefix("@") for value in preset.values()}
    chosen: dict[str, str] = {}
    for name, each in candidates.items():
        if name in usual or each.kind not in chosen:
            chosen[each.kind] = name
    return list(chosen.values())


def _train(candidates: Mapping[str, PluginUnderTest], thorough: set[str], plan: Plan, say: Say) -> None:
    """All trainings that clauses and cases will look at; those of as many ranks in one start of the launcher."""
    labels: dict[Training, str] = {}
    for name, each in candidates.items():
        with contextlib.suppress(Skipped, NotConforming):  # the clause says so itself
            if each.unset:
                continue
            for training in (*alone(each), *(on_two_ranks(each) if name in thorough else ())):
                labels[training] = name
    labels |= {case.training: case.label for case in plan.cases}
    done = 0

    def progress(training: Training, result: Trained) -> None:
        nonlocal done
        done += 1
        how = f"{result.seconds:.1f} s" if result.succeeded else "FAILED"
        ranks = "" if training.ranks == 1 else f" on {training.ranks} ranks"
        say(f"training {done} of {len(labels)}{ranks}: {labels[training]} {how}")

    trained(*labels, progress=progress)


def _quick(candidate: PluginUnderTest, say: Say) -> list[Result]:
    name = candidate.name
    started = time.perf_counter()
    results = check_plugin(name, candidate.settings, registry=candidate.registry)
    failed = [each.clause for each in results if each.outcome == "failed"]
    said = f"breaks {', '.join(failed)}" if failed else "conforms"
    say(f"checked {name}: {said}, {time.perf_counter() - started:.1f} s")
    return results


def _row(candidate: PluginUnderTest, quick: Sequence[Result], *, thorough: bool, plan: Plan) -> Row:
    name, package, asked = candidate.name, candidate.entry.distribution or _LOCAL, []
    # What clauses can say without building it, they have said.
    if any(each.clause == "P8" and each.outcome != "passed" for each in quick):
        error, seconds = waits_for(quick), sum(each.seconds for each in quick)
        return Row(name, package, quick, error=error, left_out=bool(error), seconds=seconds)
    for each in clauses_of(candidate.kind):
        left_out = (each.id in ON_TWO_RANKS and not thorough) or (each.id in COMPILING and not plan.full)
        if each.slow and not left_out:
            asked.append(each.id)
    slow = check_plugin(name, candidate.settings, registry=candidate.registry, slow=True, only=asked) if asked else []
    loss, seconds = None, sum(each.seconds for each in (*quick, *slow))
    with contextlib.suppress(Skipped):
        runs = trained(*alone(candidate), *(on_two_ranks(candidate) if thorough else ()))
        loss, seconds = runs[0].last_loss, seconds + sum(run.seconds for run in runs)
    return Row(name, package, (*quick, *slow), loss, seconds=seconds)


def _case_row(case: Case) -> Row:
    (run,) = trained(case.training)
    loss = run.last_loss
    finite = loss is not None and math.isfinite(loss)
    error = run.why if not run.succeeded else "" if finite else f"the loss is {loss}"
    return Row(case.label, "", loss=loss, error=error, seconds=run.seconds)
