"""Find gin files and parse them into bindings with file and line."""

from __future__ import annotations

import importlib.util
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gin import config_parser

from mcframe.config.baselines import BASELINES
from mcframe.config.diagnosis import diagnose
from mcframe.config.values import Binding, Macro, Reference
from mcframe.errors import Location, UserError, did_you_mean
from mcframe.files import user_path
from mcframe.safe_text import redacted
from mcframe.trust import is_record

PRESETS = "mcframe_presets"

EXCLUSIVE = {"run.total_steps": "run.total_tokens", "run.total_tokens": "run.total_steps"}
"""Bindings of which one replaces the other across files, as a second binding of one key does."""

LocationOf = Callable[[int | None], Location]


class GinReader:
    """Collects bindings from files and overrides; of two for one key the later wins."""

    def __init__(self) -> None:
        self.bindings: dict[str, Binding] = {}
        self._open: list[Path] = []

    def file(self, name: str | Path, include: Location | None = None) -> None:
        """Read a file and its includes. `include` is the location of the include statement, if there is one."""
        path = _find(name, include)
        _check_origin(path, name, include)
        if path in self._open:
            chain = " includes ".join(str(step) for step in [*self._open[self._open.index(path) :], path])
            raise UserError(f"files include each other: {chain}", remedy="Remove one include.", location=include)
        self._open.append(path)
        self._read(_text_of(path, include), lambda line: Location(_shown(path), line))
        self._open.pop()

    def override(self, text: str) -> None:
        """Read bindings from the command line."""
        self._read(text, lambda line: Location(f"--set {redacted(text)!r}"))

    def derive(self, option: str) -> None:
        """Add the binding of a baseline option. Raises UserError if an override binds the same to another value."""
        before = dict(self.bindings)
        self._read(BASELINES[option], lambda _: Location(option))
        key = BASELINES[option].partition(" ")[0]
        overridden = before.get(key)
        if overridden and overridden.location.line is None and overridden.value != self.bindings[key].value:
            raise UserError(
                f"{option} binds {BASELINES[option]}, but --set binds {key} to another value",
                remedy=f"Remove {option} or the --set.",
                location=overridden.location,
            )

    def _read(self, text: str, location_of: LocationOf) -> None:
        seen: dict[str, Binding] = {}
        for statement in _statements(text, location_of):
            location = location_of(statement.location.line_num)
            if isinstance(statement, config_parser.IncludeStatement):
                if self._open and is_record(self._open[0]):
                    raise UserError(
                        f"the configuration that a run recorded has no includes, got include {statement.filename!r}",
                        remedy="Replace the line by the bindings of that file. --trust does not allow it.",
                        location=location,
                    )
                self.file(statement.filename, location)
            elif isinstance(statement, config_parser.ImportStatement):
                raise UserError(
                    f"a gin file cannot import modules ({statement.format()})",
                    remedy="Publish a plug-in under the entry-point group mcframe.plugins and install its package.",
                    location=location,
                )
            elif isinstance(statement, config_parser.BindingStatement):
                binding = _binding(statement, location)
                _refuse_second(seen.get(binding.key), binding)
                seen[binding.key] = self.bindings[binding.key] = binding
                if EXCLUSIVE.get(binding.key) not in seen:
                    self.bindings.pop(EXCLUSIVE.get(binding.key, ""), None)


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]  # gin has no types
    """Keeps references as written; the names are checked after all files are read."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def _binding(statement: Any, location: Location) -> Binding:
    if statement.arg_name:
        return Binding(statement.scope, statement.selector, statement.arg_name, statement.value, location)
    return Binding(statement.scope, "", statement.selector, statement.value, location)


def _refuse_second(first: Binding | None, second: Binding) -> None:
    # Presets override across an include. Within one file it is an oversight, and gin silently uses the last.
    if first is not None and first.location.line is not None:
        raise UserError(
            f"{second.key} is bound twice in this file, in line {first.location.line} "
            f"and in line {second.location.line}",
            remedy="Remove one of the two.",
            location=second.location,
        )


def _statements(text: str, location_of: LocationOf) -> Iterator[Any]:
    """Parse gin source; raise UserError for every kind of failure."""
    try:
        yield from config_parser.ConfigParser(text, _Delegate())
    except SyntaxError as error:
        reason, number = error.msg, error.lineno or 1
    except tokenize.TokenError as error:
        reason, (number, _) = error.args
    except ValueError as error:  # of null characters, before Python 3.11.4
        reason, number = str(error), 1 + text.partition("\0")[0].count("\n")
    else:
        return
    problem, number = diagnose(reason, text, number)
    raise problem.at(location_of(number))


def _text_of(path: Path, include: Location | None) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", remedy="Name a gin file.", location=include) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}", remedy="Check its permissions.", location=include
        ) from None


def _check_origin(path: Path, name: str | Path, include: Location | None) -> None:
    """Raise UserError for a file whose lines must not be in a message: no gin file, or a link out of a run."""
    if include is not None and path.suffix != ".gin":
        raise UserError(
            f"expected a file that ends in .gin, got {path}", remedy="Include gin files only.", location=include
        )
    written = user_path(name, "--gin")
    if include is None and is_record(written) and path.parent != written.parent.resolve():
        raise UserError(
            f"{name} is a link out of the run directory, to {path}", remedy=f"Pass --gin {path}, or replace the link."
        )


def _find(name: str | Path, include: Location | None) -> Path:
    """Return the file: next to the one that includes it, or in the working directory, or among the presets."""
    try:
        name = user_path(name, "include" if include and include.line else "--gin")
    except UserError as error:
        raise error.at(include) from None
    here = Path(include.file).parent if include and include.line else Path()
    # `gin/NAME`, the path in a checkout, works from anywhere.
    below = Path(*name.parts[1:]) if name.parts[:1] == ("gin",) else name
    candidates = [here / name, *(folder / below for folder in preset_folders())]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    present = {file.name for candidate in candidates for file in candidate.parent.glob("*.gin")}
    folders = ", ".join(dict.fromkeys(str(candidate.parent.resolve()) for candidate in candidates))
    remedy = f"Check the name; searched {folders}."
    original = f"{Path(name).stem.removesuffix('_baseline')}.gin"
    if original != Path(name).name and original in present:
        remedy = f"Pass --gin {Path(name).with_name(original)} --baseline."
    raise UserError(
        f"missing gin file {str(name)!r}{did_you_mean(Path(name).name, present)}",
        remedy=remedy,
        location=include,
    )


def _shown(path: Path) -> Path:
    """Return the path, relative to the working directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def preset_folders() -> list[Path]:
    """Return the folders of presets: the installed package's, and the checkout's `gin/`."""
    # importlib.resources does not work here: the package has no __init__.py (a folder `gin` with one would shadow the
    # library), and an editable install adds an entry to such a package's search path that is not a folder.
    spec = importlib.util.find_spec(PRESETS)
    installed = [Path(entry) for entry in (spec.submodule_search_locations or [])] if spec else []
    checkout = Path(__file__).resolve().parents[2] / "gin"
    return [folder for folder in [*installed, checkout] if folder.is_dir()]
