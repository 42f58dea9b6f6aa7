"""The grid file: which rows, which seeds, how many tokens. TOML, because Python reads it and people can."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mcframe.config.gin_reader import preset_folders
from mcframe.errors import Location, UserError
from mcframe.registry.plugins import did_you_mean

METRICS = ("val/loss", "mc/tail_delta", "mc/lod_delta/1", "train/tok_per_sec")
"""What is reported where a grid does not say."""

_KEYS: Mapping[str, Any] = {
    "gin": list[str],
    "set": list[str],
    "tokens": int,
    "seeds": list[int],
    "baseline": str,
    "metrics": list[str],
    "average": float,
    "evaluate": bool | list[str],
    "threads": int,
    "ranks": int,
    "rows": dict[str, list[str] | dict[str, Any]],
}
_ROW_KEYS: Mapping[str, Any] = {"set": list[str], "from": str, "evaluate": bool}
_KINDS = {list[str]: "a list of strings", list[int]: "a list of whole numbers", int: "a whole number", str: "a string"}
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_GIVEN = {"run.total_tokens": "tokens", "run.seed": "seeds"}
_EXAMPLE = 'rows are written `[rows]` and below it `name = ["binding = value"]`, [] for none'


@dataclass(frozen=True)
class Row:
    """One configuration: bindings on top of what all rows share, and the row whose weights it starts from, if any.

    evaluate   whether its runs are evaluated where the grid evaluates
    """

    name: str
    set: tuple[str, ...] = ()
    start: str | None = None
    evaluate: bool = True


@dataclass(frozen=True)
class Grid:
    """A grid file.

    file       where it was read
    gin        base gin files, as they are to be opened
    set        bindings of all rows
    tokens     dataset tokens of every run
    baseline   the row that the others are compared with
    metrics    what is reported
    average    of `train/` and `mc/` metrics, the mean over this last share of training counts
    evaluate   further options of `mcframe eval`, which then runs behind each training; None: it does not
    threads, ranks   of one run
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
        """Whether this row's runs are evaluated."""
        return self.evaluate is not None and row.evaluate


def read_grid(file: Path) -> Grid:
    """Read a grid file, one of the presets too. Raises UserError, with file and line where they are known."""
    file = _found(file)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy="name a grid file, such as grid.toml") from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        raise UserError(
            f"this is not TOML: {error}",
            remedy="strings stand in quotes, lists in [ ], one key a line",
            location=Location(file, int(found[1]) if found else None),
        ) from error
    return _Reading(file, text, content).grid()


def _found(file: Path) -> Path:
    """The file itself, else the preset that is called so: `gin/sweeps/NAME` works from anywhere, as gin files do."""
    below = Path(*file.parts[1:]) if file.parts[:1] == ("gin",) else file
    candidates = [file, *(folder / below for folder in preset_folders())]
    return next((candidate for candidate in candidates if candidate.is_file()), file)


def line_of(text: str, *needles: str) -> int | None:
    """The line (from 1) of the first needle to be found at all: as a string, else as a key, else anywhere."""
    lines = text.splitlines()
    for needle in map(re.escape, needles):
        for pattern in (rf"""["']{needle}["']""", rf"""^\s*\[?(rows\.)?["']?{needle}["']?\s*[=\]]""", needle):
            for number, line in enumerate(lines, 1):
                if re.search(pattern, line):
                    return number
    return None


class _Reading:
    """One pass over a grid file's content."""

    def __init__(self, file: Path, text: str, content: Mapping[str, Any]) -> None:
        self._file, self._text, self._content = file, text, content

    def grid(self) -> Grid:
        content = self._content
        self._check(content, _KEYS, "a grid")
        for key in ("gin", "tokens", "rows"):
            if not content.get(key):
                raise self._error(f"a grid needs {key}", f"add {key} = ...; {_EXAMPLE}", key)
        rows = {name: self._row(name, row) for name, row in content["rows"].items()}
        self._check_starts(rows)
        seeds = tuple(content.get("seeds", (0,)))
        evaluate = content.get("evaluate", False)
        grid = Grid(
            file=self._file,
            gin=tuple(self._beside(name) for name in content["gin"]),
            set=self._bindings(content.get("set", []), "set"),
            tokens=content["tokens"],
            seeds=seeds,
            rows=rows,
            baseline=content.get("baseline", next(iter(rows))),
            metrics=tuple(content.get("metrics", METRICS)),
            average=content.get("average", 0.1),
            evaluate=(tuple(evaluate) if isinstance(evaluate, list) else ()) if evaluate is not False else None,
            threads=content.get("threads", 1),
            ranks=content.get("ranks", 1),
        )
        self._check_values(grid)
        return grid

    def _row(self, name: str, content: list[str] | Mapping[str, Any]) -> Row:
        if not _NAME.fullmatch(name):
            raise self._error(
                f"a row cannot be called {name!r}: runs are kept in a folder of that name",
                "use letters, digits and . _ + -",
                name,
            )
        if isinstance(content, list):
            return Row(name, self._bindings(content, f"row {name}"))
        self._check(content, _ROW_KEYS, f"row {name}")
        bindings = self._bindings(content.get("set", []), f"row {name}")
        return Row(name, bindings, content.get("from"), content.get("evaluate", True))

    def _bindings(self, texts: Sequence[str], owner: str) -> tuple[str, ...]:
        for text in texts:
            key, equals, _ = (part.strip() for part in text.partition("="))
            if not equals:
                raise self._error(f"{owner}: {text!r} binds nothing", "write 'name.parameter = value'", text)
            if key in _GIVEN:
                raise self._error(
                    f"{owner} binds {key}, which is the same for all rows",
                    f"say it with {_GIVEN[key]} at the top of the grid",
                    text,
                )
        return tuple(texts)

    def _check_starts(self, rows: Mapping[str, Row]) -> None:
        for row in rows.values():
            seen, name = [row.name], row.start
            while name is not None:
                if name not in rows:
                    raise self._error(
                        f"row {seen[-1]} starts from {name!r}, which is no row{did_you_mean(name, rows)}",
                        f"the rows are: {', '.join(rows)}",
                        f'from = "{name}"',
                    )
                if name in seen:
                    chain = " from ".join([*seen, name])
                    raise self._error(f"rows start from each other: {chain}", "let one of them start anew", name)
                seen.append(name)
                name = rows[name].start

    def _check(self, content: Mapping[str, Any], keys: Mapping[str, Any], owner: str) -> None:
        for key, value in content.items():
            if key not in keys:
                raise self._error(
                    f"{owner} has no key {key!r}{did_you_mean(key, keys)}", f"the keys are: {', '.join(keys)}", key
                )
            try:
                TypeAdapter(keys[key]).validate_python(value, strict=True)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = "".join(f" {part}" for part in first["loc"][:1])
                kind = _KINDS.get(keys[key], "")
                remedy = _EXAMPLE if key == "rows" else f"write {kind}" if kind else str(first["msg"])
                raise self._error(f"{key}{where} is {_short(value)}: {first['msg'].lower()}", remedy, key) from error

    def _check_values(self, grid: Grid) -> None:
        rules = {
            "tokens": (grid.tokens >= 1, "1 or more"),
            "seeds": (bool(grid.seeds) and len(set(grid.seeds)) == len(grid.seeds) and min(grid.seeds) >= 0,
                      "different numbers from 0 on"),
            "metrics": (bool(grid.metrics) and len(set(grid.metrics)) == len(grid.metrics), "different names"),
            "average": (0 < grid.average <= 1, "a fraction above 0 and up to 1"),
            "threads": (grid.threads >= 1, "1 or more"),
            "ranks": (grid.ranks >= 1, "1 or more"),
        }  # fmt: skip
        for key, (holds, rule) in rules.items():
            if not holds:
                raise self._error(f"{key} is {_short(getattr(grid, key))}; it must be {rule}", f"change {key}", key)
        if grid.baseline not in grid.rows:
            raise self._error(
                f"the baseline {grid.baseline!r} is no row{did_you_mean(grid.baseline, grid.rows)}",
                f"the rows are: {', '.join(grid.rows)}",
                "baseline",
            )

    def _beside(self, name: str) -> str:
        """A gin file beside the grid, else the name as it is: where the command runs, or a preset."""
        beside = self._file.parent / name
        return str(beside) if beside.is_file() else name

    def _error(self, message: str, remedy: str, *needles: str) -> UserError:
        return UserError(message, remedy=remedy, location=Location(self._file, line_of(self._text, *needles)))


def _short(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
