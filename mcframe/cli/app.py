"""The `mcframe` command. One file a command; this one only names them."""

from __future__ import annotations

import sys

import typer

from mcframe import __version__
from mcframe.cli.check import check
from mcframe.cli.compare import compare
from mcframe.cli.dashboard import dashboard
from mcframe.cli.doctor import doctor
from mcframe.cli.evaluate import evaluate
from mcframe.cli.export import export
from mcframe.cli.launch import run
from mcframe.cli.metrics import metrics
from mcframe.cli.new_plugin import new_plugin
from mcframe.cli.plugins import plugins
from mcframe.cli.review import review
from mcframe.cli.sample import sample
from mcframe.cli.sweep import ablate
from mcframe.cli.tokenizer import tokenizer

app = typer.Typer(
    name="mcframe",
    help="Train language models whose context is learned, compressed and refocused.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


# What `mcframe run` does not know itself it passes on to mcframe/run.py.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run)
app.command()(check)
app.command()(sample)
app.command("eval")(evaluate)
app.command("sweep")(ablate)
app.command()(review)
app.command()(compare)
app.command()(export)
app.command()(tokenizer)
app.command()(doctor)
app.command("new-plugin")(new_plugin)
app.command()(metrics)
app.add_typer(plugins, name="plugins")
app.add_typer(dashboard, name="dashboard")


def main() -> None:
    """Entry of the console script."""
    sys.exit(app())
