"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        help="A plug-in besides those installed: module[:object] or path/to/file.py[:object]; may be repeated.",
    ),
]
NoPlugin = Annotated[
    list[str],
    typer.Option("--no-plugin", metavar="NAME", help="A plug-in, or a package of some, to leave out; likewise."),
]
StrictPlugins = Annotated[
    bool, typer.Option("--strict-plugins", help="Stop where any plug-in is broken, though nothing may need it.")
]


def plugin_options(plugin: list[str], no_plugin: list[str], strict: bool) -> PluginOptions:
    """What these three options say."""
    return PluginOptions(tuple(plugin), tuple(no_plugin), strict)
