"""Read grid files: rows of bindings, seeds and tokens, in TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StrictBool, StrictInt, ValidationError, model_validator

from mcframe.config.gin_reader import preset_folders
from mcframe.errors import Location, UserError, did_you_mean

METRICS = ("val/loss", "mc/tail_delta", "mc/lod_delta/1", "train/tok_per_sec")
"""The reported metrics if a grid has none."""

_GRID_KEYS = {"run.total_tokens": "tokens", "run.seed": "seeds"}


@dataclass(frozen=True)
class Row:
    """One configuration.

    Args:
        name: Its name.
        set: Bindings on top of those of all rows.
        start: The row whose weights it starts from, if any.
        evaluate: Whether its runs are evaluated if the grid evaluates.
    """

    name: str
    set: tuple[str, ...] = ()
    start: str | None = None
    evaluate: bool = True


@dataclass(frozen=True)
class Grid:
    """A grid file.

    Args:
        file: The file.
        gin: Base gin files, as they are to be opened.
        set: Bindings of all rows.
        tokens: Dataset tokens of every run.
        seeds: The seeds of every row.
        rows: The rows by name.
        baseline: The row that the others are compared with.
        metrics: The reported metrics.
        average: The last fraction of training over which `train/` and `mc/` metrics are averaged.
        evaluate: Further options of `mcframe eval`, which runs after each training; None if it does not.
        threads: Threads of a run.
        ranks: Ranks of a run.
    """

    file: Path
    gin: tuple[str, ...]
    set: tuple[str, ...]
    tokens: int
    seeds: tuple[int, ...]
    rows: Mapping[str, Row]
    baseline: str
    metrics: tuple[str, ...]
    average: float = 0.1
    evaluate: tuple[str, ...] | None = None
    threads: int = 1
    ranks: int = 1

    def evaluates(self, row: Row) -> bool:
        """Return whether this row's runs are evaluated."""
        return self.evaluate is not None and row.evaluate


def _check_binding(text: str) -> str:
    key, equals, _ = (part.strip() for part in text.partition("="))
    if not equals:
        raise ValueError("expected 'name.parameter = value'")
    if key in _GRID_KEYS:
        raise ValueError(f"expected {_GRID_KEYS[key]} at the top of the grid in place of {key}")
    return text


def _check_distinct(values: list[Any]) -> list[Any]:
    if not values or len(set(values)) < len(values):
        raise ValueError("expected different values, at least one")
    return values


_Bindings = list[Annotated[str, AfterValidator(_check_binding)]]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # of a folder
_Count = Annotated[StrictInt, Field(ge=1)]
_Seed = Annotated[StrictInt, Field(ge=0)]


class _RowTable(BaseModel, extra="forbid"):
    """A row of the file: a table, or a list of bindings."""

    set: _Bindings = []
    start: str | None = Field(None, alias="from")
    evaluate: StrictBool = True

    @model_validator(mode="before")
    @classmethod
    def _table(cls, value: object) -> object:
        if not isinstance(value, list | dict):
            raise ValueError("expected a list of bindings or a table")
        return {"set": value} if isinstance(value, list) else value


class _GridTable(BaseModel, extra="forbid"):
    """The content of the file."""

    gin: list[str] = Field(min_length=1)
    set: _Bindings = []
    tokens: _Count
    seeds: Annotated[list[_Seed], AfterValidator(_check_distinct)] = [0]
    baseline: str | None = None
    metrics: Annotated[list[str], AfterValidator(_check_distinct)] = list(METRICS)
    average: float = Field(0.1, gt=0, le=1, strict=True)
    evaluate: StrictBool | list[str] = False
    threads: _Count = 1
    ranks: _Count = 1
    rows: dict[_Name, _RowTable] = Field(min_length=1)


def read_grid(file: Path) -> Grid:
    """Read a grid file or a preset. Raises UserError, with the line if it is known."""
    file = _found(file)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy="Name a grid file, such as grid.toml.") from error
    try:
        table = _GridTable.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        raise UserError(
            f"expected TOML: {error}",
            remedy="Write strings in quotes, lists in [ ], one key a line.",
            location=Location(file, int(found[1]) if found else None),
        ) from error
    except ValidationError as error:
        raise _user_error(error, file, text) from error
    grid = _grid(table, file)
    _check_references(grid, text)
    return grid


def _grid(table: _GridTable, file: Path) -> Grid:
    rows = {name: Row(name, tuple(row.set), row.start, row.evaluate) for name, row in table.rows.items()}
    # A gin file next to the grid comes before one of the working directory and before a preset.
    gin = [str(file.parent / name) if (file.parent / name).is_file() else name for name in table.gin]
    options = table.evaluate if isinstance(table.evaluate, list) else []
    return Grid(
        file=file, gin=tuple(gin), set=tuple(table.set), tokens=table.tokens, seeds=tuple(table.seeds), rows=rows,
        baseline=next(iter(rows)) if table.baseline is None else table.baseline, metrics=tuple(table.metrics),
        average=table.average, evaluate=None if table.evaluate is False else tuple(options),
        threads=table.threads, ranks=table.ranks,
    )  # fmt: skip


def _user_error(error: ValidationError, file: Path, text: str) -> UserError:
    """Return an error of the validation with its line: a misspelt key before the one that is missing for it."""
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    path = [part for part in first["loc"] if isinstance(part, str) and part != "[key]"]
    path = path[: 3 if path[0] == "rows" else 1]  # without the names of the types of a union
    where, value = " ".join(path), first["input"]
    model = _GridTable if len(path) == 1 else _RowTable
    keys = [field.alias or name for name, field in model.model_fields.items()]
    remedy = (
        f"The keys are: {', '.join(keys)}." if path[-1] not in keys else "Change it: docs/sweeps.md has an example."
    )
    if first["type"] == "missing":
        message = f"missing {where}"
    elif first["type"] == "extra_forbidden":
        message = f"unknown key {where}{did_you_mean(path[-1], keys)}"
    else:
        message = f"{where}: {first['msg'].removeprefix('Value error, ')}, got {_short(value)}"
    needles = [value] if isinstance(value, str) and value else []
    return UserError(message, remedy=remedy, location=Location(file, line_of(text, *needles, *reversed(path))))


def _check_references(grid: Grid, text: str) -> None:
    """Raise UserError if a row that the grid names does not exist, or if rows start from each other."""

    def refuse(message: str, remedy: str, needle: str) -> None:
        raise UserError(message, remedy=remedy, location=Location(grid.file, line_of(text, needle)))

    names = f"Name one of: {', '.join(grid.rows)}."
    if grid.baseline not in grid.rows:
        refuse(f"baseline: unknown row {grid.baseline!r}{did_you_mean(grid.baseline, grid.rows)}", names, "baseline")
    for row in grid.rows.values():
        chain, name = [row.name], row.start
        while name is not None:
            if name not in grid.rows:
                refuse(
                    f"row {chain[-1]}: unknown row {name!r}{did_you_mean(name, grid.rows)}", names, f'from = "{name}"'
                )
            if name in chain:
                cycle = " from ".join([*chain, name])
                refuse(f"rows start from each other: {cycle}", "Remove one `from`.", name)
            chain.append(name)
            name = grid.rows[name].start


def _found(file: Path) -> Path:
    """Return the file itself, or the preset of that name: `gin/sweeps/NAME` works from anywhere, as gin files do."""
    below = Path(*file.parts[1:]) if file.parts[:1] == ("gin",) else file
    candidates = [file, *(folder / below for folder in preset_folders())]
    return next((candidate for candidate in candidates if candidate.is_file()), file)


def line_of(text: str, *needles: str) -> int | None:
    """Return the line (from 1) of the first needle that occurs: as a string, else as a key, else anywhere."""
    lines = text.splitlines()
    for needle in map(re.escape, needles):
        for pattern in (rf"""["']{needle}["']""", rf"""^\s*\[?(rows\.)?["']?{needle}["']?\s*[=\]]""", needle):
            for number, line in enumerate(lines, 1):
                if re.search(pattern, line):
                    return number
    return None


def _short(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
