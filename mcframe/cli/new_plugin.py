"""`mcframe new-plugin`: write a plug-in package that installs, passes its tests and can be trained with at once."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.tree import Tree

from mcframe.cli.options import Traceback
from mcframe.cli.user_errors import report_user_errors
from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError, did_you_mean
from mcframe.scaffold.kinds import KINDS
from mcframe.scaffold.names import Names, check_free
from mcframe.scaffold.package import render, what_to_change, write


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as last-child: the package is mcframe-last-child.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help=f"One of {', '.join(KINDS)}.")],
    dir_: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where to make the package's folder; default: here.")
    ] = Path(),
    traceback: Traceback = False,
) -> None:
    """Write a complete plug-in package: implementation, tests, tox.ini, gin file. Overwrites nothing."""
    raise typer.Exit(report_user_errors(lambda: _new_plugin(name, kind, dir_), traceback=traceback))


def _new_plugin(name: str, kind: str, parent: Path) -> int:
    if kind not in KINDS:
        raise UserError(
            f"there is no kind of plug-in called {kind!r}{did_you_mean(kind, KINDS)}",
            remedy=f"write --kind and one of: {', '.join(KINDS)}",
        )
    names = Names.of(name, kind)
    check_free(names, kind, all_plugins())
    folder, content = parent.expanduser() / names.package, render(names, kind)
    write(folder, content)
    console = Console()
    console.print(_tree(folder, list(content)), highlight=False)
    console.print(f"\nThe function to change: {what_to_change(names, kind)} Next:\n", highlight=False, soft_wrap=True)
    for command in (
        f"cd {shlex.quote(str(folder))}",
        f"{_python()} -m pip install -e '.[test]'",
        f"{_python()} -m tox",
    ):
        console.print(f"    {command}", style="bold", highlight=False, markup=False, soft_wrap=True)
    return 0


def _python() -> str:
    """How the Python that mcframe runs in is called at a prompt: shortly where that means the same."""
    found = shutil.which("python")
    return "python" if found and Path(found).parent == Path(sys.executable).parent else shlex.quote(sys.executable)


def _tree(folder: Path, paths: list[str]) -> Tree:
    tree = Tree(f"{folder}/")
    branches = {"": tree}
    for path in paths:
        *folders, file = path.split("/")
        above = ""
        for part in folders:
            below = f"{above}{part}/"
            if below not in branches:
                branches[below] = branches[above].add(f"{part}/")
            above = below
        branches[above].add(file)
    return tree
