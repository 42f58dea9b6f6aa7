"""Attribution of errors: a call of a third-party plug-in records its origin in every exception that it raises."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from mcframe.errors import Location, UserError
from mcframe.hookspecs import INTERFACES, PROJECT
from mcframe.registry.checks import ContractError

if TYPE_CHECKING:  # the registry wraps hooks with this module
    from mcframe.registry.plugins import Plugin, Registered, Registry

_CALL = "_mcframe_call"


@dataclass(frozen=True)
class PluginCall:
    """A call of a plug-in's code.

    Attributes:
        plugin: Name of the plug-in in the registry.
        function: The function, as messages name it.
        entry: The implementation that the function is a method of; None for a hook.
    """

    plugin: str
    function: str
    entry: Registered | None = None


def attributed(function: Callable[..., Any], call: PluginCall) -> Callable[..., Any]:
    """Return `function` such that its exceptions, and those of an iterator that it returns, carry `call`."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        try:
            result = function(*arguments, **options)
        except Exception as error:
            _record(error, call)
            raise
        return _attributed_items(result, call) if isinstance(result, Iterator) else result

    setattr(wrapper, _CALL, call)
    return wrapper


def attribute_calls(product: object, entry: Registered) -> None:
    """Make errors in the interface's methods of `product` carry `entry`.

    The methods are replaced in the instance, not in its class: the type stays as it is, and a deep copy binds its own.
    """
    attributes = vars(product)
    for name in _interface_methods(entry.kind):
        method = inspect.getattr_static(type(product), name)
        if inspect.isfunction(method) and name not in attributes:
            call = PluginCall(entry.plugin, name, entry)
            attributes[name] = MethodType(attributed(method, call), product)


def explain(error: Exception, registry: Registry) -> UserError | None:
    """Return the error as a message that names the plug-in, or None if no third-party plug-in raised it.

    Running out of memory is never attributed.
    """
    if isinstance(error, (UserError, MemoryError, torch.OutOfMemoryError)):
        return None
    if isinstance(error, ContractError):
        entry = _entry_of(error.culprit)
        return broken_contract(error, entry) if entry else None
    call = getattr(error, _CALL, None) or _call_by_file(error, registry)
    if call is None:
        return None
    plugin = registry.plugins[call.plugin]
    subject = _named(call.entry) if call.entry else plugin.origin
    return _message(f"{subject} failed in {call.function}: {last_line(error)}", error, plugin, call.entry)


def not_built(error: Exception, entry: Registered, registry: Registry) -> UserError:
    """Return the message for a factory that raised an error."""
    return _message(
        f"{_named(entry)} could not be built: {last_line(error)}", error, registry.plugins[entry.plugin], entry
    )


def without_methods(missing: list[str], entry: Registered) -> UserError:
    """Return the message for a class without all methods of its interface."""
    interface = INTERFACES[entry.kind].__name__
    return UserError(
        f"{_named(entry)}: missing method {', '.join(missing)} of {interface}",
        remedy=f"Implement {', '.join(missing)}; see mcframe.hookspecs.{interface}.",
        location=Location(entry.file),
    )


def broken_contract(error: ContractError, entry: Registered) -> UserError:
    """Return the message for a plug-in that does not keep its interface."""
    method = getattr(type(error.culprit), error.method, None)
    code = getattr(method, "__code__", None)
    location = Location(code.co_filename, code.co_firstlineno) if code else Location(entry.file)
    return UserError(f"{_named(entry)}: {error.problem}", remedy=error.remedy, location=location)


def last_line(error: BaseException) -> str:
    """Return the type of an error and the last line of its text; of a UserError, message and remedy."""
    text = f"{error.message}: {error.remedy}" if isinstance(error, UserError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    name = "" if isinstance(error, UserError) else type(error).__name__
    return ": ".join(filter(None, [name, lines[-1] if lines else ""]))


def _record(error: Exception, call: PluginCall) -> None:
    """Record the innermost plug-in; where it calls itself, its outermost function."""
    recorded = getattr(error, _CALL, call)
    if (recorded.plugin, recorded.entry) == (call.plugin, call.entry):
        setattr(error, _CALL, call)


def _attributed_items(items: Iterator[Any], call: PluginCall) -> Iterator[Any]:
    try:
        return (yield from items)
    except Exception as error:
        _record(error, call)
        raise


def _entry_of(product: object) -> Registered | None:
    """Return the implementation of a third-party product; its methods, not its state, carry it."""
    calls = (getattr(value, _CALL, None) for value in getattr(product, "__dict__", {}).values())
    return next((call.entry for call in calls if call), None)


def _interface_methods(kind: str) -> Iterator[str]:
    for base in INTERFACES[kind].__mro__:
        if base.__module__.startswith("mcframe."):
            yield from (name for name in vars(base) if not name.startswith("_"))


def _call_by_file(error: Exception, registry: Registry) -> PluginCall | None:
    """Attribute an error by its innermost third-party file: an autograd function's backward pass is never wrapped."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for plugin in registry.plugins.values():
            if plugin.distribution != PROJECT and _contains(plugin.file, frame.filename):
                return PluginCall(plugin.name, frame.name)
    return None


def _message(message: str, error: Exception, plugin: Plugin, entry: Registered | None) -> UserError:
    """Return the message with the innermost line of the plug-in's code, or its file if no frame is in it."""
    files = (plugin.file, entry.file if entry else "")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(_contains(file, frame.filename) for file in files)]
    location = Location(own[-1].filename, own[-1].lineno) if own else Location(files[1] or files[0])
    lines = [message, *([own[-1].line] if own and own[-1].line else []), *getattr(error, "__notes__", ())]
    authors = f", or report it to the authors of {plugin.distribution}" if plugin.distribution else ""
    without = f"choose another {entry.kind}" if entry else f"skip it with --no-plugin {plugin.short}"
    return UserError(
        "\n  ".join(lines),
        remedy=f"Correct it{authors}; or {without}. --traceback prints the traceback.",
        location=location,
    )


def _contains(file: str, inner: str) -> bool:
    """Report whether `inner` is in the outermost package of `file`, or is `file` itself."""
    root = Path(file)
    while (root.parent / "__init__.py").exists():
        root = root.parent
    return bool(file) and Path(inner).is_relative_to(root)


def _named(entry: Registered) -> str:
    return f"{entry.kind}.{entry.name} of {entry.origin}"
