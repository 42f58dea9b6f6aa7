"""`mcframe plugins`: what there is to choose from, where it comes from, and how it is set."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mcframe.cli import conformance
from mcframe.cli.matrix import matrix
from mcframe.cli.options import NoPlugin, Plugin, Set, StrictPlugins, Traceback, plugin_options
from mcframe.cli.user_errors import report_user_errors
from mcframe.config.configurables import Configurable
from mcframe.config.parameters import gin_lines, parameters_of
from mcframe.config.run_config import all_plugins, selecting_line
from mcframe.errors import UserError, did_you_mean
from mcframe.hookspecs import API_VERSION
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import BrokenPlugin, Registered, Registry
from mcframe.registry.plugins import Plugin as Installed

plugins = typer.Typer(
    help="List the plug-ins that there are, with their packages; show what one of them takes; check them."
)

Json = Annotated[bool, typer.Option("--json", help="For machines.")]


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
    """List the plug-ins that there are, with their packages; show what one of them takes; check them."""
    context.obj = plugin_options(plugin, no_plugin, strict_plugins)
    if context.invoked_subcommand is None:
        raise typer.Exit(
            report_user_errors(lambda: _list(all_plugins(context.obj), as_json=json_), traceback=traceback)
        )


@plugins.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="KIND.NAME", help="Such as gistnet.transformer.")],
    plugin: Plugin = [],  # noqa: B006
    no_plugin: NoPlugin = [],  # noqa: B006
    strict_plugins: StrictPlugins = False,
    json_: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show what one plug-in is, and its parameters as gin lines to paste."""
    options = _more(context.obj, plugin, no_plugin, strict_plugins)
    raise typer.Exit(report_user_errors(lambda: _show(all_plugins(options), name, as_json=json_), traceback=traceback))


@plugins.command()
def check(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="[KIND.NAME]...", help="Such as gistnet.transformer.")] = [],  # noqa: B006
    every: Annotated[bool, typer.Option("--all", help="Every plug-in that there is.")] = False,
    slow: Annotated[bool, typer.Option("--slow", help="Also requirements that start processes or compile.")] = False,
    set_: Set = [],  # noqa: B006
    width: Annotated[int, typer.Option("--width", help="Width of the models that they are built for.")] = 16,
    plugin: Plugin = [],  # noqa: B006
    no_plugin: NoPlugin = [],  # noqa: B006
    strict_plugins: StrictPlugins = False,
    json_: Json = False,
    traceback: Traceback = False,
) -> None:
    """Check plug-ins against the requirements of docs/conformance.md. Exit code 1 if one does not conform."""
    options = _more(context.obj, plugin, no_plugin, strict_plugins)
    raise typer.Exit(
        report_user_errors(
            lambda: conformance.check(
                all_plugins(options), names, every=every, settings=set_, width=width, slow=slow, as_json=json_
            ),
            traceback=traceback,
        )
    )


def _more(outer: PluginOptions, plugin: list[str], no_plugin: list[str], strict: bool) -> PluginOptions:
    """The options of `mcframe plugins` and those of the command behind it."""
    return PluginOptions((*outer.named, *plugin), (*outer.without, *no_plugin), outer.strict or strict)


def _list(registry: Registry, *, as_json: bool) -> int:
    if as_json:
        typer.echo(json.dumps(_facts(registry), indent=2))
        return 0
    console = Console()
    offered = Table(*(Column(name, no_wrap=True) for name in ("kind", "name")), Column("from", overflow="fold"))
    for entry in _every(registry):
        offered.add_row(entry.kind, entry.name, _from(registry.plugins[entry.plugin]))
    console.print(offered, highlight=False)
    hooks = Table("hooks", Column("from", overflow="fold"), title="take part in a run", title_justify="left")
    for each in registry.plugins.values():
        if each.lifecycle:
            hooks.add_row(", ".join(each.lifecycle), _from(each))
    if hooks.rows:
        console.print(hooks, highlight=False)
    for broken in registry.broken:
        console.print(f"broken: {broken}\n  → {broken.remedy}", style="yellow", highlight=False, markup=False)
    if registry.skipped:
        console.print(f"left out: {', '.join(registry.skipped)}", style="yellow", highlight=False, markup=False)
    return 0


def _facts(registry: Registry) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "api": API_VERSION,
        "implementations": [_origin(registry, each) for each in _every(registry)],
        "lifecycle": [_lifecycle(each) for each in registry.plugins.values() if each.lifecycle],
        "broken": [_broken(each) for each in registry.broken],
        "left_out": registry.skipped,
    }


def _every(registry: Registry) -> list[Registered]:
    return [entry for offered in registry.implementations.values() for entry in offered.values()]


def _origin(registry: Registry, entry: Registered) -> dict[str, Any]:
    plugin = registry.plugins[entry.plugin]
    return {
        "kind": entry.kind, "name": entry.name, "plugin": plugin.short, "package": entry.distribution,
        "version": entry.version, "api": entry.api, "file": entry.file or plugin.file,
    }  # fmt: skip


def _lifecycle(plugin: Installed) -> dict[str, Any]:
    return {
        "hooks": list(plugin.lifecycle), "plugin": plugin.short, "package": plugin.distribution,
        "version": plugin.version, "api": plugin.api, "file": plugin.file,
    }  # fmt: skip


def _broken(broken: BrokenPlugin) -> dict[str, Any]:
    return {
        "plugin": broken.entry_point, "package": broken.distribution, "version": broken.version,
        "error": broken.error, "remedy": broken.remedy,
    }  # fmt: skip


def _from(plugin: Installed) -> str:
    """Its package and entry point, or how `--plugin` names it here: what fits on a line. `--json` has the file, too."""
    named = plugin.spec.removeprefix(f"{Path.cwd()}/")
    return escape(f"--plugin {named}" if named else f"{plugin.distribution} {plugin.version}, {plugin.short}")


def _show(registry: Registry, name: str, *, as_json: bool) -> int:
    entry = _find(registry, name.removeprefix("@"))
    published = Configurable(f"{entry.kind}.{entry.name}", entry.factory, entry.kind)
    parameters, doc = parameters_of(published), inspect.getdoc(entry.factory) or ""
    facts = _origin(registry, entry)
    chosen = selecting_line(entry)
    if as_json:
        described = [{**dataclasses.asdict(each), "line": each.line} for each in parameters]
        typer.echo(json.dumps({**facts, "doc": doc, "select": chosen, "parameters": described}, indent=2))
        return 0
    api = f"made for plug-in API {entry.api}" if entry.api else "says nothing of the plug-in API it was made for"
    typer.echo(f"# {published.name}, {entry.origin}, {api}\n# {facts['file']}")
    typer.echo("".join(f"\n# {line}".rstrip() for line in doc.splitlines()) + "\n")
    lines = [chosen, *gin_lines(parameters)]
    if published.accepts_any:
        lines.append("# it takes parameters of any other name, too")
    typer.echo("\n".join(lines))
    return 0


def _find(registry: Registry, name: str) -> Registered:
    """What is called so, with or without its kind. Raises UserError where nothing is, or more than one thing."""
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
        raise UserError(f"{name} is the name of {', '.join(found)}", remedy="write the kind in front of it")
    raise UserError(
        f"no plug-in is called {name}{did_you_mean(name, every)}",
        remedy="write it in full, kind.name; `mcframe plugins` lists them all",
    )
