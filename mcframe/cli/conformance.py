"""`mcframe plugins check`: whether plug-ins do what their interfaces ask, clause by clause."""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcframe.config.run_config import GIN_CONFIGURABLES, load_config
from mcframe.errors import UserError
from mcframe.registry.plugins import Registry
from mcframe.testing.checking import Result, check_plugin, waits_for

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim"}


def check(
    registry: Registry, names: list[str], *, every: bool, settings: list[str], width: int, slow: bool, as_json: bool
) -> int:
    """Check the plug-ins of these names, or all of them; print what was seen. Returns 1 unless all conform.

    One that waits for a setting without a default is told apart.
    """
    _check_read(registry, settings, slow=slow)
    console, found = Console(), dict[str, list[Result]]()
    for name in _chosen(registry, names, every=every):
        found[name] = check_plugin(name, settings, registry=registry, width=width, slow=slow)
        if not as_json:
            _print(console, name, found[name], whole=len(names) == 1 and not every)
    if as_json:
        facts = {name: [dataclasses.asdict(each) for each in results] for name, results in found.items()}
        typer.echo(json.dumps(facts, indent=2))
    unchecked = {name: reason for name, results in found.items() if (reason := waits_for(results))}
    if not as_json:
        if len(found) > 1:
            console.print(_summary(found))
        for name, reason in unchecked.items():
            said = f"{name} is unchecked: {reason}"
            console.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return int(any(each.outcome == "failed" for results in found.values() for each in results))


def _check_read(registry: Registry, settings: list[str], *, slow: bool) -> None:
    """Raise UserError where a binding is wrong, or is one of a run and there will be none."""
    for binding in load_config([], settings, registry).bindings.values():
        if binding.name in GIN_CONFIGURABLES and not slow:
            raise UserError(
                f"{binding.key} changes nothing here: plug-ins are checked on trees of the kit's own, without a run",
                remedy="leave it out, or add --slow, whose real runs read it",
                place=binding.location,
            )


def _chosen(registry: Registry, names: list[str], *, every: bool) -> list[str]:
    offered = [f"{kind}.{name}" for kind, items in registry.implementations.items() for name in items]
    if every and names:
        raise UserError("names and --all say two things", remedy="give the names, or --all")
    if not every and not names:
        raise UserError("no plug-in is named", remedy="give names, such as gistnet.mean, or --all for every one")
    full = []
    for name in [name.removeprefix("@") for name in names]:
        found = [each for each in offered if each == name or each.partition(".")[2] == name]
        if len(found) > 1:
            raise UserError(f"{name} is the name of {', '.join(found)}", remedy="write the kind in front of it")
        full += found or [name]
    return offered if every else list(dict.fromkeys(full))


def _print(console: Console, name: str, results: list[Result], *, whole: bool) -> None:
    """The table of one plug-in: every clause, or, of several plug-ins, what did not pass."""
    shown = results if whole else [each for each in results if each.outcome == "failed"]
    if not shown:
        return
    table = Table(title=name, title_justify="left")
    for column in ("clause", "title", "result"):
        table.add_column(column, no_wrap=column == "clause", overflow="fold")
    table.add_column("s", justify="right")
    for each in shown:
        result = f"[{_STYLES[each.outcome]}]{each.outcome}[/]" + (f": {escape(each.message)}" if each.message else "")
        table.add_row(each.clause, escape(each.title), result, f"{each.seconds:.1f}")
    console.print(table)


def _summary(found: dict[str, list[Result]]) -> Table:
    table = Table()
    table.add_column("plug-in", no_wrap=True)
    for column in ("conforms", *_STYLES, "s"):
        table.add_column(column, justify="right")
    for name, results in found.items():
        counts = {outcome: sum(each.outcome == outcome for each in results) for outcome in _STYLES}
        verdict = "[bold red]no[/]" if counts["failed"] else "[green]yes[/]"
        if not counts["failed"] and waits_for(results):
            verdict = "[yellow]unchecked[/]"
        seconds = sum(each.seconds for each in results)
        table.add_row(name, verdict, *(str(n or "–") for n in counts.values()), f"{seconds:.0f}")
    return table
