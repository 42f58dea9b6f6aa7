"""`mcframe plugins matrix`: every plug-in through the conformance kit and through training, with one table."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcframe.cli.options import NoPlugin, Plugin, StrictPlugins, Traceback
from mcframe.cli.user_errors import report_user_errors
from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError, did_you_mean
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import Registered, Registry

_WIDE = 150
"""Columns of the table where no terminal says how many there are, as in the log of a CI."""


def matrix(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="[KIND.NAME]...", help="Only these.")] = [],  # noqa: B006
    package: Annotated[list[str], typer.Option(help="Only plug-ins of this package; may be repeated.")] = [],  # noqa: B006
    settings: Annotated[Path | None, typer.Option(metavar="TOML", help="What some need: docs/matrix.md.")] = None,
    cross: Annotated[bool, typer.Option(help="Also one step of every pair of one of these and another part.")] = False,
    full: Annotated[bool, typer.Option(help="Two ranks and the compiler for all, not for one of a kind.")] = False,
    out: Annotated[Path, typer.Option(help="Where matrix.json and matrix.md go.")] = Path("runs/matrix"),
    plugin: Plugin = [],  # noqa: B006
    no_plugin: NoPlugin = [],  # noqa: B006
    strict_plugins: StrictPlugins = False,
    traceback: Traceback = False,
) -> None:
    """Check and train every plug-in; print a table. Exit code 1 where one fails. Minutes."""
    outer: PluginOptions = context.obj
    options = PluginOptions((*outer.named, *plugin), (*outer.without, *no_plugin), outer.strict or strict_plugins)

    def action() -> int:
        registry = all_plugins(options)
        entries = _chosen(registry, names, package)
        return _matrix(registry, entries, read_settings(settings), out, cross=cross, full=full)

    raise typer.Exit(report_user_errors(action, traceback=traceback))


def _matrix(
    registry: Registry, entries: list[Registered], needs: dict[str, Needs], out: Path, *, cross: bool, full: bool
) -> int:
    # Behind the options: the kit needs hypothesis, which not everybody has.
    from mcframe.testing.cross import crossing
    from mcframe.testing.matrix import Plan, run_matrix
    from mcframe.testing.matrix_table import COLUMNS, cells, complaints, write

    console, began = Console(), time.monotonic()
    if not console.is_terminal:
        console.width = _WIDE
    settings = {name: each.set for name, each in needs.items()}
    left_out = {name: each.leave_out for name, each in needs.items() if each.leave_out}
    cases = crossing(registry, entries, settings, left_out) if cross else ()
    plan = Plan(settings, left_out, cases, full)

    def say(line: str) -> None:
        console.print(f"{time.monotonic() - began:5.0f} s  {line}", highlight=False, markup=False, soft_wrap=True)

    rows = run_matrix(registry, entries, plan, say)
    table = Table()
    for column in COLUMNS:
        table.add_column(column, min_width=30 if column == COLUMNS[0] else None)
    for row in rows:
        table.add_row(*map(escape, cells(row)), style="red" if row.failed else None)
    console.print(table)
    for complaint in complaints(rows):
        console.print(complaint, style="red", highlight=False, markup=False, soft_wrap=True)
    seconds = time.monotonic() - began
    data, page = write(out, rows, seconds)
    failed = [row.name for row in rows if row.failed]
    verdict = f"failed: {', '.join(failed)}" if failed else "all conform and train"
    console.print(f"{len(rows)} rows in {seconds:.0f} s, {verdict}. {page}, {data}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _chosen(registry: Registry, names: Sequence[str], packages: Sequence[str]) -> list[Registered]:
    every = {f"{each.kind}.{each.name}": each for kind in registry.implementations.values() for each in kind.values()}
    packages_of_all = sorted({each.distribution for each in every.values()} - {""})
    _check_known(names, sorted(every), "no plug-in is called")
    _check_known(packages, packages_of_all, "no plug-in comes from a package called")
    chosen = {name: each for name, each in every.items() if not packages or each.distribution in packages}
    return [each for name, each in chosen.items() if not names or name in names]


def _check_known(names: Sequence[str], known: Sequence[str], message: str) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{message} {name}{did_you_mean(name, known)}", remedy=f"write one of: {', '.join(known)}")


class Needs(BaseModel, extra="forbid", frozen=True):
    """What one plug-in needs, in a file of settings."""

    set: list[str] = []
    leave_out: str = ""


def read_settings(file: Path | None) -> dict[str, Needs]:
    """Full name -> what the plug-in needs. Raises UserError where the file is not as docs/matrix.md says."""
    try:
        tables = tomllib.loads(file.read_text("utf-8")) if file else {}
        return TypeAdapter(dict[str, Needs]).validate_python(tables)
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise UserError(
            f"{file} cannot be read as settings of the matrix: {error}",
            remedy='write tables such as ["gistnet.mine"] with set = ["gistnet.mine.layers = 1"] or leave_out = "why"',
        ) from error
