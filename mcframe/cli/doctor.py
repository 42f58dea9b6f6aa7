"""`mcframe doctor`: check this machine for everything that training needs."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import torch
import typer
from rich.console import Console

from mcframe.cli.options import command
from mcframe.data.cache import cache_dir
from mcframe.errors import UserError
from mcframe.metrics.tables import FittedTable
from mcframe.metrics.wandb_logger import resolve_mode
from mcframe.registry.discovery import discover
from mcframe.training.engine import prepare_environment, shared_memory_op_cached

_PACKAGES = ("torch", "deepspeed", "gin-config", "pluggy", "datasets", "tokenizers", "tensorboard", "wandb")


@dataclass(frozen=True)
class Finding:
    """One line of the table; `good` is None for information."""

    what: str
    state: str
    good: bool | None = None
    remedy: str = ""


@command
def doctor(
    ranks: Annotated[int, typer.Option(min=1, help="Processes of a run; several on a CPU need a compiler.")] = 1,
) -> int:
    """Check that this machine has everything that training needs. Exit code 1 if something is missing."""
    prepare_environment()
    findings = [*_machine(), *_packages(), *_compiler(ranks), *_services()]
    table = FittedTable(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark = {True: "[green]ok[/]", False: "[red]missing[/]", None: ""}[finding.good]
        table.add_row(mark, finding.what, finding.state + (f"\n→ {finding.remedy}" if finding.remedy else ""))
    Console().print(table, highlight=False)
    return int(any(finding.good is False for finding in findings))


def _machine() -> Iterator[Finding]:
    yield Finding("python", platform.python_version(), True)
    yield Finding("processor", f"{os.cpu_count()} cores, {platform.machine()}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("GPU", ", ".join(names), True)
    else:
        yield Finding("GPU", "none that torch can see: training runs on the CPU")


def _packages() -> Iterator[Finding]:
    for name in _PACKAGES:
        try:
            yield Finding(name, version(name), True)
        except PackageNotFoundError:
            yield Finding(name, "not installed", False, f"pip install {name}")


def _compiler(ranks: int) -> Iterator[Finding]:
    needed = ranks > 1 and not torch.cuda.is_available() and not shared_memory_op_cached()
    for what, program, remedy in (
        ("C++ compiler", os.environ.get("CXX", "g++"), "Debian, Ubuntu: apt-get install g++"),
        ("ninja", "ninja", "pip install ninja"),
    ):
        found = shutil.which(program)
        if found:
            yield Finding(what, found, True)
        else:
            yield Finding(what, f"{program} was not found", False if needed else None, remedy)
    if not torch.cuda.is_available():
        state = "built" if shared_memory_op_cached() else "built at the first start of several ranks, in a minute"
        yield Finding("DeepSpeed CPU op", state)


def _services() -> Iterator[Finding]:
    mode = resolve_mode("auto")
    offline = "not logged in: runs are kept offline; `wandb login` logs in"
    yield Finding("wandb", offline if mode == "offline" else mode)
    yield Finding("cache", f"{cache_dir()} (set MCFRAME_CACHE to move it)")
    try:
        registry = discover()
    except UserError as error:
        yield Finding("plug-ins", error.message, False, error.remedy)
        return
    packages = ", ".join(f"{name} {number}" for name, number in registry.versions().items())
    yield Finding("plug-ins", packages, True)
    for broken in registry.broken:
        yield Finding("plug-in", str(broken), None, broken.remedy)
