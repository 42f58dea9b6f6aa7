"""`mcframe plugins`: list plug-ins with their packages, show their parameters, check them."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column

from mcframe.cli import conformance
from mcframe.cli.matrix import matrix
from mcframe.cli.options import (
    Json,
    NoPlugin,
    Plugin,
    Set,
    StrictPlugins,
    Traceback,
    command,
    merged,
    plugin_options,
)
from mcframe.cli.streams import echo
from mcframe.cli.user_errors import report_user_errors
from mcframe.config.configurables import configurable_of
from mcframe.config.parameters import gin_lines, parameters_of
from mcframe.config.run_config import all_plugins, selecting_line
from mcframe.errors import UserError, did_you_mean
from mcframe.hookspecs import API_VERSION
from mcframe.metrics.tables import FittedTable
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import Plugin as Installed
from mcframe.registry.plugins import Registered, Registry

plugins = typer.Typer(help="List plug-ins with their packages; show the parameters of one; check them.")

plugins.command()(matrix)


@plugins.callback(invoke_without_command=True)
def list_(
    context: typer.Context,
    plugin: Plugin = [],  # noqa: B006 - typer copies it
    no_plugin: NoPlugin = [],  # noqa: B006
    strict_plugins: StrictPlugins = False,
    json_: Json = False,
    traceback: Traceback = False,
) -> None:
    """List plug-ins with their packages; show the parameters of one; check them."""
    context.obj = plugin_options(plugin, no_plugin, strict_plugins)
    if context.invoked_subcommand is None:
        raise typer.Exit(
            report_user_errors(lambda: _list(all_plugins(context.obj), as_json=json_), traceback=traceback)
        )


@plugins.command()
@command
def show(
    context: typer.Context,
    plugins: PluginOptions,
    name: Annotated[str, typer.Argument(metavar="KIND.NAME", help="Such as gistnet.transformer.")],
    json_: Json = False,
) -> int:
    """Show what one plug-in is, and its parameters as gin lines to paste."""
    return _show(all_plugins(merged(context.obj, plugins)), name, as_json=json_)


@plugins.command()
@command
def check(
    context: typer.Context,
    plugins: PluginOptions,
    names: Annotated[list[str], typer.Argument(metavar="[KIND.NAME]...", help="Such as gistnet.transformer.")] = [],  # noqa: B006
    every: Annotated[bool, typer.Option("--all", help="Every plug-in.")] = False,
    slow: Annotated[bool, typer.Option("--slow", help="Also requirements that start processes or compile.")] = False,
    set_: Set = [],  # noqa: B006
    width: Annotated[int, typer.Option("--width", help="Width of the models that they are built for.")] = 16,
    json_: Json = False,
) -> int:
    """Check plug-ins against the requirements of docs/conformance.md. Exit code 1 if one does not conform."""
    registry = all_plugins(merged(context.obj, plugins))
    return conformance.check(registry, names, every=every, settings=set_, width=width, slow=slow, as_json=json_)


def _list(registry: Registry, *, as_json: bool) -> int:
    if as_json:
        echo(json.dumps(_facts(registry), indent=2))
        return 0
    console = Console()
    offered = FittedTable(*(Column(name, no_wrap=True) for name in ("kind", "name")), Column("from", overflow="fold"))
    for entry in _every(registry):
        offered.add_row(entry.kind, entry.name, _from(registry.plugins[entry.plugin]))
    console.print(offered, highlight=False)
    hooks = FittedTable("hooks", Column("from", overflow="fold"), title="take part in a run", title_justify="left")
    for each in registry.plugins.values():
        if each.lifecycle:
            hooks.add_row(", ".join(each.lifecycle), _from(each))
    if hooks.rows:
        console.print(hooks, highlight=False)
    for broken in registry.broken:
        console.print(f"broken: {broken}\n  → {broken.remedy}", style="yellow", highlight=False, markup=False)
    if registry.skipped:
        console.print(f"skipped: {', '.join(registry.skipped)}", style="yellow", highlight=False, markup=False)
    return 0


def _facts(registry: Registry) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "api": API_VERSION,
        "implementations": [_origin(registry, each) for each in _every(registry)],
        "lifecycle": [
            {
                "hooks": list(each.lifecycle), "plugin": each.short, "package": each.distribution,
                "version": each.version, "api": each.api, "file": each.file,
            }
            for each in registry.plugins.values() if each.lifecycle
        ],
        "broken": [
            {
                "plugin": each.entry_point, "package": each.distribution, "version": each.version,
                "error": each.error, "remedy": each.remedy,
            }
            for each in registry.broken
        ],
        "left_out": registry.skipped,
    }  # fmt: skip


def _every(registry: Registry) -> list[Registered]:
    return [entry for offered in registry.implementations.values() for entry in offered.values()]


def _origin(registry: Registry, entry: Registered) -> dict[str, Any]:
    plugin = registry.plugins[entry.plugin]
    return {
        "kind": entry.kind, "name": entry.name, "plugin": plugin.short, "package": entry.distribution,
        "version": entry.version, "api": entry.api, "file": entry.file or plugin.file,
    }  # fmt: skip


def _from(plugin: Installed) -> str:
    """Return package and entry point, or the value of `--plugin`: what fits on a line. `--json` has the file, too."""
    named = plugin.spec.removeprefix(f"{Path.cwd()}/")
    return escape(f"--plugin {named}" if named else f"{plugin.distribution} {plugin.version}, {plugin.short}")


def _show(registry: Registry, name: str, *, as_json: bool) -> int:
    entry = _find(registry, name.removeprefix("@"))
    published = configurable_of(entry)
    parameters, doc = parameters_of(published), inspect.getdoc(entry.factory) or ""
    facts = _origin(registry, entry)
    chosen = selecting_line(entry)
    if as_json:
        described = [{**dataclasses.asdict(each), "line": each.line} for each in parameters]
        echo(json.dumps({**facts, "doc": doc, "select": chosen, "parameters": described}, indent=2))
        return 0
    api = f"made for plug-in API {entry.api}" if entry.api else "without the plug-in API version it was made for"
    echo(f"# {published.name}, {entry.origin}, {api}\n# {facts['file']}")
    echo("".join(f"\n# {line}".rstrip() for line in doc.splitlines()) + "\n")
    lines = [chosen, *gin_lines(parameters)]
    if published.accepts_any:
        lines.append("# it takes parameters of any other name, too")
    echo("\n".join(lines))
    return 0


def _find(registry: Registry, name: str) -> Registered:
    """Return the plug-in of a name with or without its kind. Raises UserError if not exactly one matches."""
    kind, _, item = name.rpartition(".")
    if kind in registry.implementations:
        if item not in registry.implementations[kind]:
            raise registry.unknown(kind, item)
        return registry.implementations[kind][item]
    broken = next((each for each in registry.broken if name in (each.entry_point, each.distribution)), None)
    if broken:
        raise UserError(str(broken), remedy=broken.remedy)
    every = {f"{entry.kind}.{entry.name}": entry for entry in _every(registry)}
    found = [full for full, each in every.items() if each.name == name]
    if len(found) == 1:
        return every[found[0]]
    if found:
        raise UserError(f"{name} is the name of {', '.join(found)}", remedy="Write the kind before it.")
    raise UserError(
        f"unknown plug-in {name}{did_you_mean(name, every)}",
        remedy="Write it in full, kind.name; `mcframe plugins` lists them all.",
    )
