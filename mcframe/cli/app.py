"""The `mcframe` command. Commands are imported when they are called: torch alone takes seconds."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

import typer
from typer.core import TyperGroup

from mcframe import __version__
from mcframe.cli.streams import echo, lost_output, protect_streams
from mcframe.cli.user_errors import show
from mcframe.ending_signals import PARENTS, ParentWatch, handle_ending_signals, raise_again
from mcframe.errors import EXIT_USER_ERROR, UserError, interrupted_code, raise_interrupt
from mcframe.renamed import RENAMED_COMMANDS, RENAMED_OPTIONS

COMMANDS = {
    "run": ("launch:run", "Train a model from gin files."),
    "check": ("check:check", "Check a gin file and print the run that it describes, without training."),
    "sample": ("sample:sample", "Continue a prompt with a trained model."),
    "generate": ("generate:generate", "Continue a text with a trained model; sessions of any length."),
    "chat": ("chat:chat", "Chat with a trained model in the terminal."),
    "serve": ("serve:serve", "Serve a trained model over OpenAI's API."),
    "eval": ("evaluate:evaluate", "Evaluate a trained model: what its gists keep, and where it focuses."),
    "sweep": ("sweep:sweep", "Train a grid of settings over several seeds and compare them."),
    "replay": ("replay:replay", "Run the step of a saved anomaly again, such as a loss of NaN."),
    "review": ("review:review", "Review a run: a page with findings, figures and plots."),
    "compare": ("compare:compare", "Compare two runs or more at equal tokens."),
    "bench": ("bench:bench", "Time a step against its plain baseline and the floor of its networks."),
    "export": ("export:export", "Write the weights of a checkpoint as safetensors."),
    "tokenizer": ("tokenizer:tokenizer", "Train and cache the tokenizer of a gin file."),
    "doctor": ("doctor:doctor", "Check that this machine has everything that training needs."),
    "new-plugin": ("new_plugin:new_plugin", "Create a package with a plug-in."),
    "metrics": ("metrics:metrics", "List the metrics that a run logs, with unit and meaning."),
    "plugins": ("plugins:plugins", "List, show and check plug-ins."),
    "dashboard": ("dashboard:dashboard", "Write the dashboard of a run for TensorBoard or wandb."),
}
"""Command -> its function or group, as module:name below `mcframe.cli`, and its line in `mcframe --help`."""


_MARKUP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= 60 else None
"""In a narrower terminal, the tables of a formatted help would have columns of a few letters."""


@contextmanager
def _interrupts_reported() -> Iterator[None]:
    """End an interrupted command with a line and the signal's exit code. typer has no line, and code 130 for all."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise SystemExit(_interrupted(error)) from None


def _interrupted(error: KeyboardInterrupt) -> int:
    print("interrupted", file=sys.stderr)  # noqa: T201
    return interrupted_code(error)


class LazyGroup(TyperGroup):
    """A group that imports a command when it is called. Its help needs only the table above."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and remaining arguments, as click does, with the command imported."""
        name = args[0]
        if name in RENAMED_COMMANDS:
            new = RENAMED_COMMANDS[name]
            show(UserError(f"mcframe {name} has a new name: mcframe {new}", remedy=f"Run mcframe {new}."))
            raise typer.Exit(EXIT_USER_ERROR)
        for option in RENAMED_OPTIONS.keys() & {argument.split("=")[0] for argument in args[1:]}:
            new = RENAMED_OPTIONS[option]
            show(UserError(f"{option} has a new name: {new}", remedy=f"Pass {new}."))
            raise typer.Exit(EXIT_USER_ERROR)
        if name in COMMANDS:
            self.commands[name] = _command(name)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the arguments."""
        with _interrupts_reported():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Call a command."""
        with _interrupts_reported():
            return super().invoke(ctx)


def _command(name: str) -> Any:
    """Import a command and return it for click."""
    module, attribute = COMMANDS[name][0].split(":")
    target = getattr(import_module(f"mcframe.cli.{module}"), attribute)
    if isinstance(target, typer.Typer):
        target.rich_markup_mode = _MARKUP
        group = typer.main.get_group(target)
        group.name = name
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
    # `mcframe run` has a parser of its own, with the options that it passes on.
    passed_on: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    settings = passed_on if name == "run" else {}
    single.command(name, context_settings=settings)(target)
    return typer.main.get_command(single)


def all_commands() -> dict[str, Any]:
    """Import every command, for documentation and tests."""
    return {name: _command(name) for name in COMMANDS}


app = typer.Typer(
    name="mcframe",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=_MARKUP,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main() -> None:
    """Train language models whose context is learned, compressed and refocused."""


@app.command()
def version() -> None:
    """Print the version."""
    echo(__version__)


for _name, (_target, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main() -> None:
    """Run the console script."""
    # Nothing has begun yet, and a signal ends this process. Later imports would lose its exception, or replace it.
    for name in COMMANDS.keys() & set(sys.argv[1:2]):
        _command(name)
    import_module("pydantic.type_adapter")  # typer needs it later
    code: Any = 0
    try:
        sys.unraisablehook = raise_again
        handle_ending_signals(raise_interrupt)
        if PARENTS in os.environ:
            ParentWatch().start()
        protect_streams()
        app()
    except KeyboardInterrupt as error:
        code = _interrupted(error)
    except SystemExit as end:
        code = end.code
    sys.exit(code or lost_output())
