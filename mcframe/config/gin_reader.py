"""Finding gin files and parsing them into bindings that know their file and line."""

from __future__ import annotations

import importlib.util
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gin import config_parser

from mcframe.config.diagnosis import diagnose
from mcframe.config.values import Binding, Macro, Reference
from mcframe.errors import Location, UserError
from mcframe.registry.plugins import did_you_mean

PRESETS = "mcframe_presets"

PlaceOf = Callable[[int | None], Location]


class GinReader:
    """Collects bindings from files and overrides; of two for one key the later wins."""

    def __init__(self) -> None:
        self.bindings: dict[str, Binding] = {}
        self._open: list[Path] = []

    def file(self, name: str | Path, asked_by: Location | None = None) -> None:
        """Read a file and what it includes. `asked_by` is the include statement, if there is one."""
        path = _find(name, asked_by)
        if path in self._open:
            chain = " includes ".join(str(step) for step in [*self._open[self._open.index(path) :], path])
            raise UserError(f"files include each other: {chain}", remedy="remove one include", place=asked_by)
        self._open.append(path)
        self._read(_text_of(path, asked_by), lambda line: Location(_shown(path), line))
        self._open.pop()

    def override(self, text: str) -> None:
        """Read bindings from the command line."""
        self._read(text, lambda line: Location(f"--set {text!r}"))

    def _read(self, text: str, place_of: PlaceOf) -> None:
        seen: dict[str, Binding] = {}
        for statement in _statements(text, place_of):
            place = place_of(statement.location.line_num)
            if isinstance(statement, config_parser.IncludeStatement):
                self.file(statement.filename, place)
            elif isinstance(statement, config_parser.ImportStatement):
                raise UserError(
                    f"a gin file cannot import modules ({statement.format()})",
                    remedy="publish a plug-in under the entry-point group mcframe.plugins, and install its package",
                    place=place,
                )
            elif isinstance(statement, config_parser.BindingStatement):
                binding = _binding(statement, place)
                _refuse_second(seen.get(binding.key), binding)
                seen[binding.key] = self.bindings[binding.key] = binding


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]  # gin has no types
    """Keeps references as written; whether they name anything is checked when all files are read."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def _binding(statement: Any, place: Location) -> Binding:
    if statement.arg_name:
        return Binding(statement.scope, statement.selector, statement.arg_name, statement.value, place)
    return Binding(statement.scope, "", statement.selector, statement.value, place)


def _refuse_second(first: Binding | None, second: Binding) -> None:
    # Over an include it is how presets work; within one file it is an oversight, and gin takes the last silently.
    if first is not None and first.place.line is not None:
        raise UserError(
            f"{second.key} is bound twice in this file, in line {first.place.line} and in line {second.place.line}",
            remedy="remove one of the two",
            place=second.place,
        )


def _statements(text: str, place_of: PlaceOf) -> Iterator[Any]:
    """Parse gin source, with every way of failing turned into one kind of error."""
    try:
        yield from config_parser.ConfigParser(text, _Delegate())
    except SyntaxError as error:
        reason, number = error.msg, error.lineno or 1
    except tokenize.TokenError as error:
        reason, (number, _) = error.args
    else:
        return
    problem, number = diagnose(reason, text, number)
    raise problem.at(place_of(number))


def _text_of(path: Path, asked_by: Location | None) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", remedy="name a gin file", place=asked_by) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}", remedy="check its permissions", place=asked_by
        ) from None


def _find(name: str | Path, asked_by: Location | None) -> Path:
    """The file: beside the one that includes it or where the command runs, else among the presets."""
    here = Path(asked_by.file).parent if asked_by and asked_by.line else Path()
    # `gin/NAME` is how a checkout spells a preset; it works from anywhere.
    below = Path(*Path(name).parts[1:]) if Path(name).parts[:1] == ("gin",) else Path(name)
    candidates = [here / name, *(folder / below for folder in preset_folders())]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    # Gin files in the folders looked in.
    there = {file.name for candidate in candidates for file in candidate.parent.glob("*.gin")}
    folders = ", ".join(dict.fromkeys(str(candidate.parent.resolve()) for candidate in candidates))
    raise UserError(
        f"no gin file {str(name)!r}{did_you_mean(Path(name).name, there)}",
        remedy=f"check the name; looked in {folders}",
        place=asked_by,
    )


def _shown(path: Path) -> Path:
    """The path as a person would write it: relative where it lies below the folder they are in."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def preset_folders() -> list[Path]:
    """Where presets are shipped: the installed package's folder, and the checkout's `gin/`."""
    # Not importlib.resources: the package has no __init__.py (a folder `gin` with one would shadow the library), and
    # an editable install gives such a package a search path with an entry that is no folder.
    spec = importlib.util.find_spec(PRESETS)
    installed = [Path(entry) for entry in (spec.submodule_search_locations or [])] if spec else []
    checkout = Path(__file__).resolve().parents[2] / "gin"
    return [folder for folder in [*installed, checkout] if folder.is_dir()]
