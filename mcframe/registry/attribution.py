"""Whose fault it was: from an error that nobody expected to the plug-in in which it arose.

Nothing is caught where plug-ins are called. The traceback holds all that is needed: the frames of a plug-in's files,
and in their variables the very objects that its factories have made.
"""

from __future__ import annotations

import linecache
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from mcframe.errors import Location, UserError
from mcframe.hookspecs import INTERFACES, PROJECT
from mcframe.registry.checks import ContractError
from mcframe.registry.plugins import Plugin, Registered, Registry, last_line

_TORCH = Path(torch.__file__).parent


@dataclass(frozen=True)
class _Line:
    file: str
    number: int

    @property
    def text(self) -> str:
        return linecache.getline(self.file, self.number).strip()


def explain(error: Exception, registry: Registry) -> UserError | None:
    """The error as a message that names the plug-in; None where it arose in none, or in one of mcframe's own.

    A lack of memory is nobody's in particular.
    """
    if isinstance(error, (UserError, MemoryError, torch.OutOfMemoryError)):
        return None
    if isinstance(error, ContractError):
        entry = registry.maker(error.culprit)
        return None if entry is None or entry.distribution == PROJECT else broken_contract(error, entry)
    found = _find(error, registry)
    if found is None:
        return None
    line, plugin, entry, method = found
    who = plugin.origin if entry is None else _named(entry)
    return _message(f"{who} failed in {method}: {last_line(error)}", line, error, _remedy(plugin, entry))


def not_built(error: Exception, entry: Registered, registry: Registry) -> UserError:
    """The message for a factory that raised something."""
    plugin = registry.plugins[entry.plugin]
    lines = [line for line in _lines(error) if _owner(line.file, [plugin, *_own(entry)])]
    line = lines[-1] if lines else _Line(entry.file or plugin.file, 0)
    return _message(f"{_named(entry)} could not be built: {last_line(error)}", line, error, _remedy(plugin, entry))


def without_methods(missing: list[str], entry: Registered) -> UserError:
    """Return the message for a class without all methods of its interface."""
    interface = INTERFACES[entry.kind].__name__
    return UserError(
        f"{_named(entry)}: missing method {', '.join(missing)} of {interface}",
        remedy=f"Implement {', '.join(missing)}; see mcframe.hookspecs.{interface}.",
        place=Location(entry.file) if entry.file else None,
    )


def broken_contract(error: ContractError, entry: Registered) -> UserError:
    """The message for a plug-in that does not keep its interface."""
    code = getattr(getattr(type(error.culprit), error.method, None), "__code__", None)
    place = Location(code.co_filename, code.co_firstlineno) if code else (Location(entry.file) if entry.file else None)
    return UserError(f"{_named(entry)}: {error.problem}", remedy=error.remedy, place=place)


def _message(message: str, line: _Line, error: Exception, remedy: str) -> UserError:
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    place = Location(line.file, line.number or None) if line.file else None
    return UserError(message + (f"\n  {line.text}" if line.text else "") + notes, remedy=remedy, place=place)


def _find(error: Exception, registry: Registry) -> tuple[_Line, Plugin, Registered | None, str] | None:
    """The innermost line of a stranger's plug-in, the plug-in, and what of it was at work in which function."""
    frames = list(traceback.walk_tb(error.__traceback__))  # the innermost comes last
    strangers = [plugin for plugin in registry.plugins.values() if plugin.distribution != PROJECT]
    defined = [entry for offered in registry.implementations.values() for entry in offered.values()]
    known = [*strangers, *_own(*(entry for entry in defined if entry.distribution != PROJECT))]
    for frame, number in reversed(frames):
        entry, file = _maker(frame, registry), frame.f_code.co_filename
        owner = _owner(file, known) if entry is None else registry.plugins[entry.plugin]
        if owner is not None and owner.distribution != PROJECT:
            owner = registry.plugins[owner.name]
            return _Line(file, number), owner, *_acting(frames, owner, registry)
    return None


def _acting(frames: list[tuple[FrameType, int]], owner: Plugin, registry: Registry) -> tuple[Registered | None, str]:
    """What of a plug-in was at work, and in which of its functions: the first that the framework had called."""
    for frame, _ in frames:
        entry = _maker(frame, registry)
        if entry is not None and entry.plugin == owner.name:
            return entry, frame.f_code.co_name
    called = [frame.f_code.co_name for frame, _ in frames if _owner(frame.f_code.co_filename, [owner])]
    hook = next((name for name in called if name in owner.lifecycle), None)
    return None, f"its hook {hook}" if hook else (called or ["its code"])[0]


def _maker(frame: FrameType, registry: Registry) -> Registered | None:
    """Whose object's method this is; torch calls the methods of modules in methods of its own."""
    if Path(frame.f_code.co_filename).is_relative_to(_TORCH):
        return None
    return registry.maker(frame.f_locals.get("self"))


def _lines(error: Exception) -> list[_Line]:
    frames = traceback.walk_tb(error.__traceback__)
    return [_Line(frame.f_code.co_filename, number) for frame, number in frames]


def _own(*entries: Registered) -> list[Plugin]:
    """The files in which implementations are defined, where that is another than their plug-in's."""
    return [Plugin(each.plugin, each.distribution, each.version, file=each.file) for each in entries]


def _owner(file: str, plugins: list[Plugin]) -> Plugin | None:
    """Whose package holds the file; where that is the package of several, whose own file is it or lies nearest."""
    holding = [plugin for plugin in plugins if plugin.file and Path(file).is_relative_to(_root(plugin.file))]
    return max(holding, key=lambda plugin: _nearness(file, plugin.file), default=None)


def _nearness(file: str, own: str) -> tuple[bool, int]:
    return Path(file) == Path(own), len(Path(os.path.commonpath((file, own))).parts)


def _root(file: str) -> Path:
    """The outermost package that a file lies in; itself where it lies in none."""
    root = Path(file)
    while (root.parent / "__init__.py").exists():
        root = root.parent
    return root


def _named(entry: Registered) -> str:
    return f"{entry.kind}.{entry.name} of {entry.origin}"


def _remedy(plugin: Plugin, entry: Registered | None) -> str:
    authors = f", or report it to the authors of {plugin.distribution}" if plugin.distribution else ""
    without = f"choose another {entry.kind}" if entry else f"skip it with --no-plugin {plugin.short}"
    return f"Correct it{authors}; or {without}. --traceback prints the traceback."
