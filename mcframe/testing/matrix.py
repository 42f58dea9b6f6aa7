"""The matrix: every plug-in through the conformance kit and through training, and pairs of them together."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from allpairspy import AllPairs

from mcframe.config.run_config import load_run_config
from mcframe.registry.plugins import Registered, Registry
from mcframe.testing.assertions import NotConforming, Skipped
from mcframe.testing.checking import Result, check_plugin, missing_settings
from mcframe.testing.kinds import MODEL_PARTS
from mcframe.testing.plugin_under_test import PluginUnderTest, find
from mcframe.testing.requirements import BUILT, requirements_of
from mcframe.testing.trainings import Trained, Training, on_one_rank, on_two_ranks, stop, trained

COMPILING = ("R5",)
"""Requirements that take half a minute or more: checked only in the full form."""

ON_TWO_RANKS = ("R3", "R4")
"""Requirements that the quick form checks for one plug-in of each kind."""

SLOTS, LEVELS = (1, 2), (1, 2)
Log = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A combination: one plug-in of each kind of a model, in a tree.

    Attributes:
        parts: Pairs of kind and name.
        slots, levels: The tree.
        settings: gin bindings that the parts need.
        plugins: Plug-ins that are not installed, as `--plugin` names them.
    """

    parts: tuple[tuple[str, str], ...]
    slots: int
    levels: int
    settings: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its parts and its tree in a few words."""
        return f"{' × '.join(name for _, name in self.parts)}, {self.slots} slot(s), {self.levels} level(s)"

    @property
    def training(self) -> Training:
        """One step with all parts."""
        chosen = [f"run.{kind} = @{kind}.{name}" for kind, name in self.parts]
        tree = [f"context.slots = {self.slots}", f"context.levels = {self.levels}"]
        return Training((*chosen, *tree, *self.settings), self.plugins, steps=1)


def combinations(
    registry: Registry, entries: Sequence[Registered], settings: Mapping[str, Sequence[str]], skipped: Collection[str]
) -> list[Case]:
    """Return cases in which each model part of `entries` meets every other part that can be built.

    Args:
        registry: All plug-ins.
        entries: The plug-ins of interest.
        settings: gin bindings by full name. Without them a plug-in is tried with its example.
        skipped: Full names that no case contains.
    """
    needed: dict[tuple[str, str], tuple[str, ...]] = {}
    for kind in MODEL_PARTS:
        for name in sorted(registry.implementations[kind]):
            full = f"{kind}.{name}"
            plugin = find(full, settings.get(full, ()), registry=registry)
            with contextlib.suppress(NotConforming):  # its own check reports an example that cannot be built
                if full not in skipped and not plugin.missing_settings:
                    needed[kind, name] = plugin.bindings
    names = {kind: [name for other, name in needed if other == kind] for kind in MODEL_PARTS}
    selected = {(each.kind, each.name) for each in entries}
    plugins = tuple(each.spec for each in registry.plugins.values() if each.spec)
    return [
        replace(case, settings=tuple(one for part in case.parts for one in needed[part]), plugins=plugins)
        for case in covering(names)
        if selected.intersection(case.parts)
    ]


def covering(names: Mapping[str, Sequence[str]]) -> list[Case]:
    """Return cases in which any two plug-ins of different kinds meet, as do each plug-in and each tree."""
    if not all(names.values()):
        return []
    return [
        Case(tuple(zip(names, values[: len(names)], strict=True)), values[-2], values[-1])
        for values in AllPairs([*map(list, names.values()), list(SLOTS), list(LEVELS)])
    ]


@dataclass(frozen=True)
class Plan:
    """Options of the matrix.

    Attributes:
        settings: gin bindings that a plug-in needs, by full name.
        skipped: Reasons for neither checking nor training a plug-in, by full name.
        cases: Combinations to train.
        full: Whether to use two ranks and the compiler for every plug-in, not for one of each kind.
    """

    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    cases: Sequence[Case] = ()
    full: bool = False


@dataclass(frozen=True)
class Row:
    """Results of a plug-in or a case.

    Attributes:
        name: The full name, or the label of a case.
        package: The package of the plug-in; empty for a case.
        results: The results of its requirements; none for a case.
        loss: Loss of the last training step; None without a training.
        error: The reason why a case failed or a plug-in was skipped.
        skipped: Whether the plug-in was skipped.
        seconds: Duration of its checks and trainings.
    """

    name: str
    package: str
    results: Sequence[Result] = ()
    loss: float | None = None
    error: str = ""
    skipped: bool = False
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """True if a requirement or the training failed."""
        return (bool(self.error) and not self.skipped) or bool(self.of("failed"))

    def of(self, outcome: str) -> list[Result]:
        """Return the results with this outcome."""
        return [each for each in self.results if each.outcome == outcome]

    @property
    def failures(self) -> list[str]:
        """Its failures, one line each."""
        errors = [f"{self.name}: {self.error}"] if self.error and not self.skipped else []
        return errors + [f"{self.name} breaks {r.requirement}, {r.title}: {r.message}" for r in self.of("failed")]


def run_matrix(registry: Registry, entries: Sequence[Registered], plan: Plan, log: Log) -> list[Row]:
    """Check and train the entries and the cases. `log` receives a line for each step."""
    names = [f"{each.kind}.{each.name}" for each in entries]
    found = [find(name, plan.settings.get(name, ()), registry=registry) for name in names]
    plugins = {each.name: each for each in found if each.name not in plan.skipped}
    thorough = set(plugins) if plan.full else set(_one_of_each_kind(plugins))
    with ThreadPoolExecutor(1) as background:  # trainings run while this process checks
        training = background.submit(_train, plugins, thorough, plan, log)
        try:
            quick = {name: _quick(each, log) for name, each in plugins.items()}
            training.result()
        except BaseException:  # after a Ctrl-C the trainings would continue
            stop()
            raise
    rows = [
        _row(each, quick[each.name], thorough=each.name in thorough, full=plan.full)
        if each.name in plugins
        else Row(each.name, each.entry.distribution, error=plan.skipped[each.name], skipped=True)
        for each in found
    ]
    return rows + [_case_row(case) for case in plan.cases]


def _one_of_each_kind(plugins: Mapping[str, PluginUnderTest]) -> list[str]:
    """Return the plug-in of each kind that the preset of short trainings selects, else the first one."""
    preset = load_run_config(["smoke.gin"], []).config.as_dict()
    usual = {str(value).removeprefix("@") for value in preset.values()}
    chosen: dict[str, str] = {}
    for name, each in plugins.items():
        if name in usual or each.kind not in chosen:
            chosen[each.kind] = name
    return list(chosen.values())


def _train(plugins: Mapping[str, PluginUnderTest], thorough: set[str], plan: Plan, log: Log) -> None:
    """Run all trainings that requirements and cases read."""
    labels: dict[Training, str] = {}
    for name, each in plugins.items():
        with contextlib.suppress(Skipped, NotConforming):  # the requirement reports it
            if not each.missing_settings:
                runs = [*on_one_rank(each), *(on_two_ranks(each) if name in thorough else ())]
                labels |= dict.fromkeys(runs, name)
    labels |= {case.training: case.label for case in plan.cases}
    done: list[Training] = []

    def progress(training: Training, result: Trained) -> None:
        done.append(training)
        how = f"{result.seconds:.1f} s" if result.succeeded else "FAILED"
        ranks = "" if training.ranks == 1 else f" on {training.ranks} ranks"
        log(f"training {len(done)} of {len(labels)}{ranks}: {labels[training]} {how}")

    trained(*labels, progress=progress)


def _quick(plugin: PluginUnderTest, log: Log) -> list[Result]:
    started = time.perf_counter()
    results = check_plugin(plugin.name, plugin.settings, registry=plugin.registry)
    failed = [each.requirement for each in results if each.outcome == "failed"]
    outcome = f"breaks {', '.join(failed)}" if failed else "conforms"
    log(f"checked {plugin.name}: {outcome}, {time.perf_counter() - started:.1f} s")
    return results


def _row(plugin: PluginUnderTest, quick: Sequence[Result], *, thorough: bool, full: bool) -> Row:
    package = plugin.entry.distribution or "a local file"
    seconds = sum(each.seconds for each in quick)
    if any(each.requirement == BUILT and each.outcome != "passed" for each in quick):
        missing = missing_settings(quick)
        return Row(plugin.name, package, quick, error=missing, skipped=bool(missing), seconds=seconds)
    unselected = {*(() if thorough else ON_TWO_RANKS), *(() if full else COMPILING)}
    slow = [each.id for each in requirements_of(plugin.kind) if each.slow and each.id not in unselected]
    results = check_plugin(plugin.name, plugin.settings, registry=plugin.registry, slow=True, only=slow)
    seconds, loss = seconds + sum(each.seconds for each in results), None
    with contextlib.suppress(Skipped):
        runs = trained(*on_one_rank(plugin), *(on_two_ranks(plugin) if thorough else ()))
        loss, seconds = runs[0].last_loss, seconds + sum(run.seconds for run in runs)
    return Row(plugin.name, package, (*quick, *results), loss, seconds=seconds)


def _case_row(case: Case) -> Row:
    (run,) = trained(case.training)
    finite = run.last_loss is not None and math.isfinite(run.last_loss)
    error = run.failure if not run.succeeded else "" if finite else f"the loss is {run.last_loss}"
    return Row(case.label, "", loss=run.last_loss, error=error, seconds=run.seconds)
