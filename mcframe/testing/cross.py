"""Which plug-ins are tried together: every pair of parts at least once, in few cases."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from allpairspy import AllPairs

from mcframe.registry.plugins import Registered, Registry
from mcframe.testing.plugin_under_test import find
from mcframe.testing.requirements import NotConforming
from mcframe.testing.trainings import Training

KINDS = ("gistnet", "lensnet", "allocator", "variants")
SLOTS, LEVELS = (1, 2), (1, 2)


@dataclass(frozen=True)
class Case:
    """One plug-in of each kind, in a tree.

    parts     kind -> name
    settings  gin bindings that the parts need
    plugins   plug-ins that are not installed, as `--plugin` names them
    """

    parts: tuple[tuple[str, str], ...]
    slots: int
    levels: int
    settings: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """In a few words."""
        return f"{' × '.join(name for _, name in self.parts)}, {self.slots} slot(s), {self.levels} level(s)"

    @property
    def training(self) -> Training:
        """One step with all of them."""
        chosen = [f"run.{kind} = @{kind}.{name}" for kind, name in self.parts]
        tree = [f"context.slots = {self.slots}", f"context.levels = {self.levels}"]
        return Training((*chosen, *tree, *self.settings), self.plugins, steps=1)


def offered(registry: Registry, kinds: Sequence[str] = KINDS) -> dict[str, list[str]]:
    """Kind -> the names of its plug-ins."""
    return {kind: sorted(registry.implementations[kind]) for kind in kinds}


def crossing(
    registry: Registry,
    entries: Sequence[Registered],
    settings: Mapping[str, Sequence[str]],
    left_out: Collection[str],
) -> list[Case]:
    """Cases in which each of the entries that is a part meets every other part that can be built.

    settings  full name -> gin bindings that the plug-in needs; without them it is tried with its example
    left_out  full names that are in no case
    """
    needed = _needed(registry, settings, left_out)
    names = {kind: [name for name in items if (kind, name) in needed] for kind, items in offered(registry).items()}
    asked = {(each.kind, each.name) for each in entries}
    plugins = tuple(each.spec for each in registry.plugins.values() if each.spec)
    return [
        replace(case, settings=tuple(one for part in case.parts for one in needed[part]), plugins=plugins)
        for case in covering(names)
        if asked.intersection(case.parts)
    ]


def _needed(
    registry: Registry, settings: Mapping[str, Sequence[str]], left_out: Collection[str]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Kind and name of every part that can be built -> the bindings that it needs.

    It cannot be where it waits for a setting, or its example cannot be made: checking it alone tells of that.
    """
    needed = {}
    for kind, names in offered(registry).items():
        for name in names:
            full = f"{kind}.{name}"
            candidate = find(full, settings.get(full, ()), registry=registry)
            with contextlib.suppress(NotConforming):
                if full not in left_out and not candidate.unset:
                    needed[kind, name] = candidate.bindings
    return needed


def covering(names: Mapping[str, Sequence[str]]) -> list[Case]:
    """Cases in which any two plug-ins of different kinds meet, as does each plug-in with every tree."""
    if not all(names.values()):
        return []
    factors = [*names.values(), SLOTS, LEVELS]
    return [
        Case(tuple(zip(names, values[: len(names)], strict=True)), values[-2], values[-1])
        for values in AllPairs([list(each) for each in factors])
    ]
