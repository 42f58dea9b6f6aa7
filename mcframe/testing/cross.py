"""Which plug-ins are tried together: every pair of parts at least once, in few cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from allpairspy import AllPairs

from mcframe.registry import Registry
from mcframe.testing.trainings import Training

KINDS = ("gistnet", "lensnet", "allocator", "variants")
SLOTS, LEVELS = (1, 2), (1, 2)


@dataclass(frozen=True)
class Case:
    """One plug-in of each kind, in a geometry.

    parts  kind -> name
    """

    parts: tuple[tuple[str, str], ...]
    slots: int
    levels: int

    @property
    def label(self) -> str:
        """In a few words."""
        return f"{' × '.join(name for _, name in self.parts)}, {self.slots} slot(s), {self.levels} level(s)"

    @property
    def training(self) -> Training:
        """One step with all of them."""
        chosen = [f"run.{kind} = @{kind}.{name}" for kind, name in self.parts]
        geometry = [f"context.slots = {self.slots}", f"context.levels = {self.levels}"]
        return Training((*chosen, *geometry), steps=1)


def offered(registry: Registry, kinds: Sequence[str] = KINDS) -> dict[str, list[str]]:
    """Kind -> the names of its plug-ins."""
    return {kind: sorted(registry.implementations[kind]) for kind in kinds}


def covering(names: Mapping[str, Sequence[str]]) -> list[Case]:
    """Cases in which any two plug-ins of different kinds meet, as does each plug-in with every geometry."""
    if not all(names.values()):
        return []
    factors = [*names.values(), SLOTS, LEVELS]
    return [
        Case(tuple(zip(names, values[: len(names)], strict=True)), values[-2], values[-1])
        for values in AllPairs([list(each) for each in factors])
    ]
