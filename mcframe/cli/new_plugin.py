"""`mcframe new-plugin`: write a plug-in package that installs, passes its tests and trains at once."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.tree import Tree

from mcframe.cli.options import command
from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError, did_you_mean
from mcframe.scaffold.kinds import TEMPLATES
from mcframe.scaffold.names import Names, check_free
from mcframe.scaffold.package import render, what_to_change, write


@command
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as last-child: the package is mcframe-last-child.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help=f"One of {', '.join(TEMPLATES)}.")],
    dir_: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Parent of the package's folder; default: the current one.")
    ] = Path(),
) -> int:
    """Write a complete plug-in package: implementation, tests, tox.ini, gin file. Overwrites nothing."""
    if kind not in TEMPLATES:
        raise UserError(
            f"--kind: expected a kind of plug-in, got {kind!r}{did_you_mean(kind, TEMPLATES)}",
            remedy=f"Write one of: {', '.join(TEMPLATES)}",
        )
    names = Names.of(name, kind)
    check_free(names, kind, all_plugins())
    folder, content = dir_ / names.package, render(names, kind)
    write(folder, content)
    console = Console()
    console.print(_tree(folder, list(content)), highlight=False)
    console.print(f"\nThe function to change: {what_to_change(names, kind)} Next:\n", highlight=False, soft_wrap=True)
    for line in (
        f"cd {shlex.quote(str(folder))}",
        f"{_python()} -m pip install -e '.[test]'",
        f"{_python()} -m tox",
    ):
        console.print(f"    {line}", style="bold", highlight=False, markup=False, soft_wrap=True)
    return 0


def _python() -> str:
    """Return the command of the Python that mcframe runs in: its short name if that is the same program."""
    found = shutil.which("python")
    return "python" if found and Path(found).parent == Path(sys.executable).parent else shlex.quote(sys.executable)


def _tree(folder: Path, paths: list[str]) -> Tree:
    """Return the files of a package as a tree."""
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
