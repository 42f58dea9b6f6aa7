"""Attribution of errors: a call of a third-party plug-in records its origin in every exception that it raises."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sysconfig
import traceback
import weakref
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mcframe.errors import Interrupt, Location, UserError, is_lost_connection
from mcframe.hookspecs import INTERFACES, PROJECT
from mcframe.registry.checks import ContractError
from mcframe.registry.global_state import Change, read_state, undo_changes, warn

if TYPE_CHECKING:  # the registry wraps hooks with this module
    from mcframe.registry.plugins import Plugin, Registered, Registry

_CALL = "_mcframe_call"
_LIBRARIES = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(torch.__file__).parents[1])})
_MODULES: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
"""The modules that third-party plug-ins have made."""

WATCHERS = ("callback", "evaluation", "logger")
"""Kinds of plug-ins that only watch: a change of global state by them is a warning."""


@dataclass(frozen=True)
class PluginCall:
    """A call of a plug-in's code.

    Attributes:
        plugin: Name of the plug-in in the registry.
        function: The function, as messages name it.
        kind: The kind of the implementation that the function is a method of; empty for a hook.
        name: The name of that implementation.
        origin: The plug-in and its package as text.
    """

    plugin: str
    function: str
    kind: str = ""
    name: str = ""
    origin: str = ""

    @property
    def subject(self) -> str:
        """The implementation and its origin as text."""
        return f"{self.kind}.{self.name} of {self.origin}" if self.kind else self.origin


class UnexpectedExit(Exception):
    """Code that a run calls raised SystemExit, KeyboardInterrupt or the like, which must not end the process."""


@contextmanager
def exits_as_errors() -> Iterator[None]:
    """Turn such an exception of the body into UnexpectedExit. A Ctrl-C of the user passes."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if (failure := _unexpected_exit(error)) is None:
            raise
        raise failure from error


def _unexpected_exit(error: BaseException) -> UnexpectedExit | None:
    """Return the error as UnexpectedExit with its traceback, or None for a Ctrl-C of the user.

    In a process with Python's own handler of SIGINT, a KeyboardInterrupt counts as a Ctrl-C.
    """
    by_python = isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if by_python or isinstance(error, Interrupt):
        return None
    return UnexpectedExit(f"{last_line(error)} (a plug-in must not end the process)").with_traceback(
        error.__traceback__
    )


def attributed(function: Callable[..., Any], call: PluginCall) -> Callable[..., Any]:
    """Return `function` such that its exceptions, and those of an iterator that it returns, carry `call`."""
    return _attributed(function, lambda *_: call)


def attribute_calls(product: object, entry: Registered) -> None:
    """Make errors in the interface's methods of `product` carry `entry`.

    The methods are wrapped in the class, so that those of a copy refer to the copy. The product itself carries its
    origin, as text that can be copied and pickled; calls of other instances of the class are not attributed.
    """
    vars(product)[_CALL] = (entry.plugin, entry.kind, entry.name, entry.origin)
    if isinstance(product, torch.nn.Module):
        _MODULES.add(product)
    owner, interface = type(product), INTERFACES[entry.kind]
    for name in _interface_methods(interface):
        method = inspect.getattr_static(owner, name)
        default = method is inspect.getattr_static(interface, name)
        if inspect.isfunction(method) and not default and not hasattr(method, _CALL):
            call = functools.partial(_call_of, name)
            wrapper = _attributed(method if name in vars(owner) else _inherited(owner, name), call)
            setattr(owner, name, functools.update_wrapper(wrapper, method))
            setattr(wrapper, _CALL, call)


def explain(error: Exception, registry: Registry) -> UserError | None:
    """Return the error as a message that names the plug-in, or None if no third-party plug-in raised it.

    Running out of memory and the loss of another rank are never attributed.
    """
    if isinstance(error, (UserError, MemoryError, torch.OutOfMemoryError)) or is_lost_connection(error):
        return None
    if isinstance(error, ContractError):
        entry = _entry_of(_call_of("", error.culprit), registry)
        return broken_contract(error, entry) if entry else None
    call = vars(error).get(_CALL) or _call_by_file(error, registry) or _call_by_module(error)
    if call is None or call.plugin not in registry.plugins:  # a second run in this process has its own registry
        return None
    entry, plugin = _entry_of(call, registry), registry.plugins[call.plugin]
    subject = named(entry) if entry else plugin.origin
    return _message(f"{subject} failed in {call.function}: {last_line(error)}", error, plugin, entry, registry)


def not_built(error: Exception, entry: Registered, registry: Registry) -> UserError:
    """Return the message for a factory that raised an error."""
    message = f"{named(entry)} could not be built: {last_line(error)}"
    return _message(message, error, registry.plugins[entry.plugin], entry, registry)


def without_methods(missing: list[str], entry: Registered) -> UserError:
    """Return the message for a class without all methods of its interface."""
    interface = INTERFACES[entry.kind].__name__
    return UserError(
        f"{named(entry)}: missing method {', '.join(missing)} of {interface}",
        remedy=f"Implement {', '.join(missing)}; see mcframe.hookspecs.{interface}.",
        location=Location(entry.file),
    )


def broken_contract(error: ContractError, entry: Registered) -> UserError:
    """Return the message for a plug-in that does not keep its interface."""
    method = inspect.unwrap(getattr(type(error.culprit), error.method, None))  # type: ignore[arg-type]
    code = getattr(method, "__code__", None)
    start = Location(code.co_filename, code.co_firstlineno) if code else Location(entry.file)
    return UserError(f"{named(entry)}: {error.problem}", remedy=error.remedy, location=error.location or start)


def described(product: object) -> str:
    """Return a plug-in and its origin as text; of one of mcframe's own, its class."""
    call = _call_of("", product)
    return call.subject if call else type(product).__name__


def is_third_party(product: object) -> bool:
    """Return whether a product of a factory comes from another package than mcframe."""
    return _call_of("", product) is not None


def last_line(error: BaseException) -> str:
    """Return the type of an error and the last line of its text; of a UserError, message and remedy."""
    text = f"{error.message}: {error.remedy}" if isinstance(error, UserError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    name = "" if isinstance(error, UserError | UnexpectedExit) else type(error).__name__
    return ": ".join(filter(None, [name, lines[-1] if lines else ""]))


def _attributed(function: Callable[..., Any], call: Callable[..., PluginCall | None]) -> Callable[..., Any]:
    """Return `function` such that its errors carry the result of `call` for the same arguments."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        # A compiled graph cannot read the state of the process.
        before = None if torch.compiler.is_compiling() else read_state()
        try:
            result = function(*arguments, **options)
        except Exception as error:
            _record(error, call(*arguments))
            raise
        except BaseException as error:
            if (failure := _unexpected_exit(error)) is None:
                raise
            _record(failure, call(*arguments))
            raise failure from error
        finally:
            changes = () if before is None else undo_changes(before)
        for change in changes:
            _report(change, call(*arguments), arguments)
        if isinstance(result, Iterator):
            return (_SizedItems if isinstance(result, Sized) else _Items)(result, call(*arguments), arguments)
        return result

    return wrapper


def _inherited(owner: type, name: str) -> Callable[..., Any]:
    """Return a method that calls the next one of this name after `owner`, in the order of the product's classes."""

    def method(self: object, *arguments: Any, **options: Any) -> Any:
        return getattr(super(owner, self), name)(*arguments, **options)

    return method


def _call_of(function: str, product: object, *_: Any) -> PluginCall | None:
    """Return the call of a method of a product, or None if the product is of no third-party plug-in."""
    plugin, *entry = getattr(product, "__dict__", {}).get(_CALL, ("",))
    return PluginCall(plugin, function, *entry) if plugin else None


def _entry_of(call: PluginCall | None, registry: Registry) -> Registered | None:
    return registry.implementations.get(call.kind, {}).get(call.name) if call else None


def _record(error: Exception, call: PluginCall | None) -> None:
    """Record the innermost plug-in; where it calls itself, its outermost function.

    The call is written to the dictionary of the error, because its class may refuse to set attributes.
    """
    if call and replace(vars(error).get(_CALL, call), function=call.function) == call:
        vars(error)[_CALL] = call


def _report(change: Change, call: PluginCall | None, arguments: tuple[Any, ...]) -> None:
    """Raise ContractError for a change of global state, or warn if it may be meant or the plug-in only watches."""
    if call is None:  # another instance of the class, which no run selected
        return
    if change.setting.certain and call.kind and call.kind not in WATCHERS:
        raise ContractError(
            arguments[0], f"{call.function} {change}", method=call.function, remedy=change.setting.remedy
        )
    warn(call.subject, call.function, change)


class _Items:
    """An iterator whose errors carry `call`, with all other attributes of `items`; see `_attributed`."""

    def __init__(self, items: Iterator[Any], call: PluginCall | None, arguments: tuple[Any, ...]) -> None:
        self._items, self._call, self._arguments = items, call, arguments

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        before = read_state()
        try:
            item = next(self._items)
        except StopIteration:
            raise
        except Exception as error:
            _record(error, self._call)
            raise
        except BaseException as error:
            if (failure := _unexpected_exit(error)) is None:
                raise
            _record(failure, self._call)
            raise failure from error
        finally:
            changes = undo_changes(before)
        for change in changes:
            _report(change, self._call, self._arguments)
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_items"), name)


class _SizedItems(_Items):
    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]


def _interface_methods(interface: type) -> Iterator[str]:
    for base in interface.__mro__:
        if base.__module__.startswith("mcframe."):
            yield from (name for name in vars(base) if not name.startswith("_"))


def _call_by_file(error: Exception, registry: Registry) -> PluginCall | None:
    """Attribute an error by its innermost third-party file: an autograd function's backward pass is never wrapped.

    A package may hold several plug-ins, so the nearest file decides.
    """
    files = [(file, plugin) for plugin in registry.plugins.values() for file in _files(plugin, registry)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        inner = frame.filename
        near = [
            (plugin.distribution == PROJECT, len(os.path.commonpath((file, inner))), plugin)
            for file, plugin in files
            if _contains(file, inner)
        ]
        own, _, plugin = max(near, key=lambda each: each[:2], default=(True, 0, None))
        if plugin and not own:
            return PluginCall(plugin.name, frame.name)
    return None


def _call_by_module(error: Exception) -> PluginCall | None:
    """Attribute an error that a library raises when it is called with a module, or a parameter, of a plug-in.

    The frames of libraries, and the first one that calls them, are searched for it.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    function = frames[-1].f_code.co_name if frames else ""
    for number, frame in enumerate(reversed(frames)):
        in_library = frame.f_code.co_filename.startswith(_LIBRARIES) and not _contains(
            __file__, frame.f_code.co_filename
        )
        if not in_library and number == 0:
            return None
        for value in list(frame.f_locals.values()):
            if isinstance(value, torch.nn.Module | torch.nn.Parameter) and (owner := _owner(value)) is not None:
                return _call_of(f"{function}, called with its module", owner)
        if not in_library:
            return None
    return None


def _owner(part: torch.nn.Module | torch.nn.Parameter) -> torch.nn.Module | None:
    """Return the module of a third-party plug-in that `part` belongs to."""
    for product in list(_MODULES):
        if any(each is part for each in (*product.modules(), *product.parameters())):
            return product
    return None


def _files(plugin: Plugin, registry: Registry) -> set[str]:
    """Return the file of a plug-in and those of its implementations."""
    entries = (entry for kind in registry.implementations.values() for entry in kind.values())
    return {plugin.file, *(entry.file for entry in entries if entry.plugin == plugin.name)}


def _message(message: str, error: Exception, plugin: Plugin, entry: Registered | None, registry: Registry) -> UserError:
    """Return the message with the innermost line of the plug-in's code, or its file if no frame is in it."""
    files = _files(plugin, registry)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(_contains(file, frame.filename) for file in files)]
    unknown = Location((entry.file if entry else "") or plugin.file)
    location = Location(own[-1].filename, own[-1].lineno) if own else unknown
    lines = [message, *([own[-1].line] if own and own[-1].line else []), *getattr(error, "__notes__", ())]
    authors = f", or report it to the authors of {plugin.distribution}" if plugin.distribution else ""
    skip = "remove its --plugin" if plugin.spec else f"skip it with --no-plugin {plugin.short}"
    without = f"choose another {entry.kind}" if entry else skip
    return UserError(
        "\n  ".join(lines),
        remedy=f"Correct it{authors}; or {without}. --traceback prints the traceback.",
        location=location,
    )


def _contains(file: str, inner: str) -> bool:
    """Report whether `inner` is in the outermost package of `file`, or is `file` itself."""
    if not file:
        return False
    root = Path(file)
    for parent in root.parents:  # those of a relative path end at the working directory
        if not (parent / "__init__.py").exists():
            break
        root = parent
    return Path(inner).is_relative_to(root)


def named(entry: Registered) -> str:
    """Return an implementation and its origin as text."""
    return f"{entry.kind}.{entry.name} of {entry.origin}"
