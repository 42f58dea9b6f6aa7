"""Discovery of plug-ins: those installed, less those of `--no-plugin`, plus those of `--plugin`.

Entry points are loaded one by one, so that a package that fails to import does not break every command. It is recorded,
mentioned in one warning line, and named as the likely cause once a run selects an unknown name. What `--plugin` names
must load.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

from mcframe.errors import UserError, did_you_mean
from mcframe.hookspecs import ENTRY_POINT_GROUP, PROJECT
from mcframe.registry.attribution import exits_as_errors, last_line
from mcframe.registry.global_state import StateError, UnchangedState
from mcframe.registry.hook_rules import OtherApi
from mcframe.registry.load_from_path import Spec, load_from_path
from mcframe.registry.plugins import BrokenPlugin, NameTaken, Plugin, Registry


@dataclass(frozen=True)
class PluginOptions:
    """The plug-in options of a command line.

    Attributes:
        named: `--plugin`: `module[:object]` or `path/to/file.py[:object]`, in addition to installed plug-ins.
        without: `--no-plugin`: names of plug-ins or packages that are not imported.
        strict: `--strict-plugins`: a broken plug-in is an error even if the run does not need it.
    """

    named: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    strict: bool = False


INSTALLED = PluginOptions()
"""Installed plug-ins only."""


def discover(options: PluginOptions = INSTALLED) -> Registry:
    """Return every installed plug-in, mcframe's own included, changed by the options.

    Raises:
        UserError: mcframe itself is not installed, `--no-plugin` names an unknown plug-in, `--plugin` does not load or
            offers a name that is taken, or, with `--strict-plugins`, any plug-in is broken.
    """
    registry = Registry()
    points = entry_points()
    found = _sorted(points.select(group=ENTRY_POINT_GROUP))
    if PROJECT not in {_distribution(point)[0] for point in found}:
        raise UserError(
            "mcframe's own plug-ins are not installed: this looks like a bare checkout",
            remedy="run `pip install -e . -c constraints.txt` in the checkout",
        )
    registry.misspelt += _misspelt_groups(points)
    _check_without(options.without, found)
    with redirect_stdout(sys.stderr):  # output of an import must not stand in the output of `--json`
        for point in found:
            if any(is_called(point, name) for name in options.without):
                registry.skipped.append(point.name)
            else:
                _load(registry, point)
        for spec in dict.fromkeys(map(Spec.parse, options.named)):
            load_from_path(registry, spec)
    if options.strict and registry.broken:
        raise UserError(
            "under --strict-plugins a plug-in that is broken stops the command:"
            + "".join(f"\n  {broken}" for broken in registry.broken),
            remedy="; ".join([*(b.remedy for b in registry.broken), "or skip it with --no-plugin NAME"]),
        )
    return registry


def installed() -> list[EntryPoint]:
    """Return the entry points of all installed plug-ins, sorted by package, without loading them."""
    return _sorted(entry_points(group=ENTRY_POINT_GROUP))


def _sorted(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    return sorted(points, key=lambda point: (_distribution(point), point.name))


def _misspelt_groups(points: Any) -> list[str]:
    """Return a line for each entry-point group that resembles mcframe's, and the package that has it."""
    near = difflib.get_close_matches(ENTRY_POINT_GROUP, points.groups, n=9, cutoff=0.8)
    near += [group for group in points.groups if _normal(group).startswith(PROJECT)]
    return [
        f"{' '.join(_distribution(point))} offers {point.name!r} under the entry-point group {group!r}, which nothing "
        f"reads: expected {ENTRY_POINT_GROUP!r}"
        for group in dict.fromkeys(near) if group != ENTRY_POINT_GROUP
        for point in points.select(group=group)
    ]  # fmt: skip


def is_called(point: EntryPoint, name: str) -> bool:
    """Return whether `name` is this plug-in, its package, or both (`package:plugin`)."""
    return _normal(name) in map(_normal, _names(point))


def _load(registry: Registry, point: EntryPoint) -> None:
    distribution, version = _distribution(point)
    # The distribution's name makes entry points of two packages with one name two plug-ins.
    known = Plugin(f"{distribution}:{point.name}", distribution, version)
    try:
        with exits_as_errors(), UnchangedState("its import", known.origin):
            registry.add(point.load(), known, installed=True)
    except NameTaken:  # twice in one plug-in
        raise
    except (OtherApi, StateError) as error:
        broken = BrokenPlugin(point.name, distribution, version, error.message, error.remedy)
        registry.broken.append(broken)
    except Exception as error:  # noqa: BLE001 - importing a third-party package can raise anything
        registry.broken.append(BrokenPlugin(point.name, distribution, version, last_line(error)))


def _check_without(without: Iterable[str], found: list[EntryPoint]) -> None:
    for name in without:
        if not any(is_called(point, name) for point in found):
            names = sorted({each for point in found for each in _names(point)[:2]})
            raise UserError(
                f"--no-plugin {name}: no plug-in and no package that has one is called so{did_you_mean(name, names)}",
                remedy=f"write one of: {', '.join(names)} (mcframe plugins lists what they offer)",
            )


def _names(point: EntryPoint) -> tuple[str, str, str]:
    distribution = _distribution(point)[0]
    return point.name, distribution or point.name, f"{distribution}:{point.name}"


def _normal(name: str) -> str:
    """Return the name as pip normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Return name and version of the package; empty if an interrupted removal left no metadata."""
    return ("", "") if point.dist is None else _name_and_version(point.dist)


@functools.lru_cache(maxsize=64)  # the entry points of one search share the object of their package
def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    metadata = distribution.metadata
    name, version = (str((metadata.get_all(key) or [""])[0]) for key in ("Name", "Version"))
    return name, version
