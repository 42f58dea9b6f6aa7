"""`mcframe plugins check`: checks plug-ins against the requirements of their kinds."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext, redirect_stdout

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcframe.cli.streams import echo
from mcframe.config.run_config import GIN_CONFIGURABLES, load_config
from mcframe.errors import UserError
from mcframe.metrics.tables import FittedTable
from mcframe.registry.plugins import Registry
from mcframe.testing.checking import Result, check_plugin, missing_settings

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim"}


def check(
    registry: Registry, names: list[str], *, every: bool, settings: list[str], width: int, slow: bool, as_json: bool
) -> int:
    """Check the plug-ins of these names, or all of them, and print the results.

    Returns:
        The exit code: 1 if a requirement is broken. A plug-in that needs a setting is reported as unchecked.
    """
    _check_settings(registry, settings, slow=slow)
    console, found = Console(), dict[str, list[Result]]()
    selected = _selected(registry, names, every=every)
    for name in selected:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what a plug-in prints is no JSON
            found[name] = check_plugin(name, settings, registry=registry, width=width, slow=slow)
        if not as_json:
            _print(console, name, found[name], complete=len(selected) == 1)
    if as_json:
        facts = {name: [dataclasses.asdict(each) for each in results] for name, results in found.items()}
        echo(json.dumps(facts, indent=2))
    else:
        if len(found) > 1:
            console.print(_summary(found))
        for name, results in found.items():
            if reason := missing_settings(results):
                line = f"{name} is unchecked: {reason}"
                console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return int(any(each.outcome == "failed" for results in found.values() for each in results))


def _check_settings(registry: Registry, settings: list[str], *, slow: bool) -> None:
    """Raise UserError if a binding is wrong, or only a run would read it."""
    for binding in load_config([], settings, registry).bindings.values():
        if binding.name in GIN_CONFIGURABLES and not slow:
            raise UserError(
                f"{binding.key} has no effect: without --slow, plug-ins are checked without a run",
                remedy="remove it, or add --slow",
                location=binding.location,
            )


def _selected(registry: Registry, names: list[str], *, every: bool) -> list[str]:
    """Return the full names of the plug-ins to check."""
    known = [f"{kind}.{name}" for kind, items in registry.implementations.items() for name in items]
    if every == bool(names):
        raise UserError(
            "mcframe plugins check: expected names or --all", remedy="write names, such as gistnet.mean, or --all"
        )
    selected = []
    for name in [name.removeprefix("@") for name in names]:
        matches = [each for each in known if each == name or each.partition(".")[2] == name]
        if len(matches) > 1:
            raise UserError(f"{name} names {', '.join(matches)}", remedy="write the kind before the name")
        selected += matches or [name]
    return known if every else list(dict.fromkeys(selected))


def _print(console: Console, name: str, results: list[Result], *, complete: bool) -> None:
    """Print a table of all results of a plug-in, or of the failures, and the message of each failure below it."""
    shown = results if complete else [each for each in results if each.outcome == "failed"]
    if not shown:
        return
    table = FittedTable(title=name, title_justify="left")
    for column in ("id", "requirement", "result"):
        table.add_column(column, no_wrap=column != "requirement")
    for each in shown:
        table.add_row(each.requirement, escape(each.title), f"[{_STYLES[each.outcome]}]{each.outcome}[/]")
    console.print(table)
    for each in shown:
        if each.message:
            line = f"{each.requirement} {each.outcome}: {each.message}"
            console.print(line, style=_STYLES[each.outcome], markup=False, highlight=False, soft_wrap=True)


def _summary(found: dict[str, list[Result]]) -> Table:
    """Return a table with one line a plug-in."""
    table = FittedTable("plug-in", "conforms", *_STYLES, "s")
    for name, results in found.items():
        counts = [sum(each.outcome == outcome for each in results) for outcome in _STYLES]
        failed = any(each.outcome == "failed" for each in results)
        unchecked = bool(missing_settings(results))
        conforms = "[bold red]no[/]" if failed else "[yellow]unchecked[/]" if unchecked else "[green]yes[/]"
        seconds = sum(each.seconds for each in results)
        table.add_row(name, conforms, *map(str, counts), f"{seconds:.0f}")
    return table
