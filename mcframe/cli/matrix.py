"""`mcframe plugins matrix`: every plug-in through the conformance kit and through training."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.console import Console

from mcframe.cli.options import command, merged
from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError, did_you_mean
from mcframe.metrics.tables import FittedTable
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import Registered, Registry


@command
def matrix(
    context: typer.Context,
    plugins: PluginOptions,
    names: Annotated[list[str], typer.Argument(metavar="[KIND.NAME]...", help="Only these.")] = [],  # noqa: B006
    package: Annotated[list[str], typer.Option(help="Only plug-ins of this package; may be repeated.")] = [],  # noqa: B006
    settings: Annotated[Path | None, typer.Option(metavar="TOML", help="Settings of plug-ins: docs/matrix.md.")] = None,
    cross: Annotated[bool, typer.Option(help="Also one step of every pair of one of these and another part.")] = False,
    full: Annotated[bool, typer.Option(help="Two ranks and the compiler for all, not for one of a kind.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of matrix.json and matrix.md.")] = Path("runs/matrix"),
) -> int:
    """Check and train every plug-in and print a table. Exit code 1 if one fails. Takes minutes."""
    registry = all_plugins(merged(context.obj, plugins))
    entries, needs = _selected(registry, names, package), read_settings(settings)
    # Imported after the options are checked: the kit needs hypothesis, an optional dependency.
    from mcframe.testing.matrix import Plan, combinations, run_matrix
    from mcframe.testing.matrix_report import COLUMNS, cells, summary, write

    console, began = Console(), time.monotonic()
    bindings = {name: each.set for name, each in needs.items()}
    skipped = {name: each.skip for name, each in needs.items() if each.skip}
    cases = combinations(registry, entries, bindings, skipped) if cross else []

    def log(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def progress(line: str) -> None:
        log(f"{time.monotonic() - began:5.0f} s  {line}")

    rows = run_matrix(registry, entries, Plan(bindings, skipped, cases, full), progress)
    table = FittedTable(*COLUMNS)
    for row in rows:
        if row.results or row.skipped:
            table.add_row(*cells(row), style="red" if row.failed else None)
    console.print(table)
    for line in summary(rows, time.monotonic() - began):
        log(line)
    log(" ".join(map(str, write(out, rows, time.monotonic() - began))))
    return int(any(row.failed for row in rows))


def _selected(registry: Registry, names: Sequence[str], packages: Sequence[str]) -> list[Registered]:
    """Return the plug-ins of these names and packages, by default all."""
    every = {f"{each.kind}.{each.name}": each for kind in registry.implementations.values() for each in kind.values()}
    known_packages = sorted({each.distribution for each in every.values()} - {""})
    for noun, selected, known in (("plug-in", names, sorted(every)), ("package", packages, known_packages)):
        for name in selected:
            if name not in known:
                raise UserError(
                    f"unknown {noun} {name}{did_you_mean(name, known)}", remedy=f"Write one of: {', '.join(known)}"
                )
    return [
        each
        for name, each in every.items()
        if (not names or name in names) and (not packages or each.distribution in packages)
    ]


class Needs(BaseModel, extra="forbid", frozen=True):
    """Needs of one plug-in in a file of settings: gin bindings, or the reason to skip it."""

    set: list[str] = []
    skip: str = ""


def read_settings(file: Path | None) -> dict[str, Needs]:
    """Return the needs of plug-ins by full name. Raises UserError unless the file is as docs/matrix.md describes."""
    try:
        tables = tomllib.loads(file.read_text("utf-8")) if file else {}
        return TypeAdapter(dict[str, Needs]).validate_python(tables)
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise UserError(
            f"{file}: expected settings of the matrix: {error}",
            remedy='Write tables such as ["gistnet.mine"] with set = ["gistnet.mine.layers = 1"] or skip = "reason".',
        ) from error
