"""Options of several commands, and the decorator that adds them."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from mcframe.cli.user_errors import report_user_errors
from mcframe.files import user_path

if TYPE_CHECKING:
    from mcframe.registry.discovery import PluginOptions

Gin = Annotated[list[str], typer.Option("--gin", metavar="FILE", help="A gin file; may be repeated.")]
Set = Annotated[list[str], typer.Option("--set", metavar="BINDING", help="A binding, such as 'run.seed = 1'.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a checkpoint in it.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="For runs of others: execute plug-ins that the run names, and follow its links and paths."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")]
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


def command(action: Callable[..., int]) -> Callable[..., None]:
    """Turn a function that returns an exit code into a command for typer.

    The command has `--traceback` and reports a UserError as one message. A parameter `plugins` of the function
    becomes the options `--plugin`, `--no-plugin` and `--strict-plugins`.
    """
    own = inspect.signature(action, eval_str=True).parameters
    added: dict[str, tuple[Any, Any]] = {"traceback": (Traceback, False)}
    if "plugins" in own:
        added |= {"plugin": (Plugin, []), "no_plugin": (NoPlugin, []), "strict_plugins": (StrictPlugins, False)}

    @functools.wraps(action)
    def run(**arguments: Any) -> None:
        traceback = arguments.pop("traceback")
        if "plugins" in own:
            three = (arguments.pop(name) for name in ("plugin", "no_plugin", "strict_plugins"))
            arguments["plugins"] = plugin_options(*three)

        def checked() -> int:
            return action(**arguments | {name: _user_paths(arguments[name], label) for name, label in paths.items()})

        raise typer.Exit(report_user_errors(checked, traceback=traceback))

    typed = [_with_path(each) for name, each in own.items() if name != "plugins"]
    parameters, paths = [each for each, _ in typed], {each.name: label for each, label in typed if label}
    for name, (annotation, default) in added.items():
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads the options from it
    run.__annotations__ = {}
    return run


def _with_path(parameter: inspect.Parameter) -> tuple[inspect.Parameter, str]:
    """Return a parameter of a command, and its name in messages if it takes paths, which it then takes as text."""
    annotation = parameter.annotation
    if "Path" not in str((get_args(annotation) or ("",))[0]):
        return parameter, ""
    (info,) = annotation.__metadata__
    named = isinstance(info, OptionInfo)
    option = (info.param_decls or (f"--{parameter.name.replace('_', '-')}",))[0]
    info = copy.copy(info)
    info.parser = str  # typer would turn an empty text into the working directory
    return parameter.replace(annotation=Annotated[annotation.__origin__, info]), option if named else info.metavar


def _user_paths(value: Any, name: str) -> Any:
    """Return the value of a parameter with every text as a path."""
    if isinstance(value, list | tuple):
        return [_user_paths(each, name) for each in value]
    return None if value is None else user_path(value, name)


def plugin_options(plugin: list[str], no_plugin: list[str], strict: bool) -> PluginOptions:
    """Return the three options as `PluginOptions`."""
    from mcframe.registry.discovery import PluginOptions  # imports torch, which `mcframe metrics` does not need

    return PluginOptions(tuple(plugin), tuple(no_plugin), strict)


def merged(outer: PluginOptions, inner: PluginOptions) -> PluginOptions:
    """Return the plug-in options of a group of commands together with those of one of its commands."""
    from mcframe.registry.discovery import PluginOptions

    return PluginOptions((*outer.named, *inner.named), (*outer.without, *inner.without), outer.strict or inner.strict)
