"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mcframe.registry.discovery import PluginOptions

Gin = Annotated[list[str], typer.Option("--gin", metavar="FILE", help="A gin file; may be repeated.")]
Set = Annotated[list[str], typer.Option("--set", metavar="BINDING", help="A binding, such as 'run.seed = 1'.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a checkpoint in it.")]
Plugin = Annotated[
    list[str],
    typer.Option(
        "--plugin",
        metavar="PLUGIN",
        help="A plug-in to add to those installed: module[:object] or path/to/file.py[:object]; may be repeated.",
    ),
]
NoPlugin = Annotated[
    list[str],
    typer.Option("--no-plugin", metavar="NAME", help="A plug-in, or a package of some, to skip; may be repeated."),
]
StrictPlugins = Annotated[
    bool, typer.Option("--strict-plugins", help="Fail if any plug-in is broken, even an unused one.")
]


def plugin_options(plugin: list[str], no_plugin: list[str], strict: bool) -> PluginOptions:
    """Return the three options as `PluginOptions`."""
    from mcframe.registry.discovery import PluginOptions  # imports torch, which `mcframe metrics` does not need

    return PluginOptions(tuple(plugin), tuple(no_plugin), strict)
