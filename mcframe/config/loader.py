"""From gin files to a `Config`, and from a `Config` to the objects it describes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin

from mcframe.config.checks import Checker, missing_error, within
from mcframe.config.configurables import Configurable, configurables
from mcframe.config.gin_reader import GinReader, preset_folders
from mcframe.config.values import Binding, Macro, Reference, as_json, map_leaves, render, scoped
from mcframe.errors import Location, UserError
from mcframe.registry.plugins import Registry

_MACRO = "gin.macro"

_active: Config | None = None


class Config:
    """A loaded configuration. gin holds one at a time: loading another ends the use of this one."""

    def __init__(self, bindings: Mapping[str, Binding], names: Mapping[str, Configurable], checker: Checker) -> None:
        self.bindings = dict(bindings)
        self._names = names
        self._checker = checker

    @property
    def active(self) -> bool:
        """Whether this is the configuration that gin holds."""
        return _active is self

    def build(self, target: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a configurable with what is bound to it; arguments given here win.

        target: its name in gin files, or what a reference (`run.gistnet = @gistnet.mean`) was bound to.
        Raises UserError where a required value is missing, and whatever the constructor raises, without the text
        and the type that gin adds; a UserError that names a binding gets that binding's place.
        """
        self._require_active()
        factory = self._configurable(target, len(args), set(kwargs)) if isinstance(target, str) else target
        try:
            return factory(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - not handled: raised again as it was before gin wrapped it
            failure = error
        raise self._explained(failure)

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Within it, a UserError that names a binding gets that binding's place, as in `build`."""
        try:
            yield
        except UserError as error:
            self._place(error)
            raise

    def bound(self) -> str:
        """Everything bound, as the text of a gin file: loaded, it gives this configuration."""
        return _text(self.bindings.values())

    def operative(self) -> str:
        """What has been used so far, defaults included, as the text of a gin file."""
        entries = [
            (scope, self._public(selector), parameter, value)
            for (scope, selector), parameters in self._operative().items()
            for parameter, value in parameters.items()
        ]
        macros = [f"{scope} = {self._shown(value)}" for scope, name, _, value in entries if name == _MACRO]
        others = [
            f"{scoped(scope, name)}.{parameter} = {self._shown(value)}"
            for scope, name, parameter, value in entries
            if name != _MACRO
        ]
        return "\n".join([*sorted(macros), *sorted(others), ""])

    def unused(self) -> list[Binding]:
        """Bindings that nothing has read so far: mostly misspelt macros and settings of plug-ins not chosen.

        Without those that stand in a preset: it sets up more than everybody chooses, and nobody here has written them.
        """
        used: set[str] = set()
        for (scope, selector), parameters in self._operative().items():
            name = self._public(selector)
            for parameter in parameters:
                binding = self.bindings.get(scope) if name == _MACRO else self._winner(scope, name, parameter)
                if binding:
                    used.add(binding.key)
        folders = [folder.resolve() for folder in preset_folders()]
        return [each for key, each in self.bindings.items() if key not in used and not _lies_in(folders, each.place)]

    def as_dict(self) -> dict[str, Any]:
        """Every binding as a value of strict JSON: macros resolved, references as they are written."""
        return {key: as_json(self._checker.resolve(binding)) for key, binding in self.bindings.items()}

    def _configurable(self, name: str, args: int, given: set[str]) -> Callable[..., Any]:
        published = self._names[name]
        scope = gin.current_scope_str()
        missing = published.missing(args, given | self._checker.bound(scope, name))
        if missing:
            raise missing_error(scope, name, missing)
        factory: Callable[..., Any] = gin.get_configurable(published.selector)
        return factory

    def _explained(self, failure: Exception) -> BaseException:
        original = _unwrapped(failure)
        if isinstance(original, UserError):
            self._place(original)
        return _lacking(failure) or original

    def _place(self, error: UserError) -> None:
        if error.place is None:
            keys = re.findall(r"[\w/]+(?:\.\w+)+", error.message)
            error.place = next((self.bindings[key].place for key in keys if key in self.bindings), None)

    def _winner(self, scope: str, name: str, parameter: str) -> Binding | None:
        """The binding that a call in this scope reads: the one with the longest matching scope."""
        matching = [
            b for b in self.bindings.values() if b.name == name and b.parameter == parameter and within(b.scope, scope)
        ]
        return max(matching, key=lambda b: len(b.scope), default=None)

    def _operative(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What gin recorded: parameters by (scope, selector)."""
        self._require_active()
        # Private, but the public text leaves out what it cannot write (infinity) and shortens names.
        with gin.config._OPERATIVE_CONFIG_LOCK:
            return {key: dict(parameters) for key, parameters in gin.config._OPERATIVE_CONFIG.items()}

    def _public(self, selector: str) -> str:
        return next((name for name, published in self._names.items() if published.selector == selector), selector)

    def _shown(self, value: Any) -> str:
        """A value as gin holds it, as source."""

        def leaf(item: Any) -> Any:
            if not isinstance(item, gin.config.ConfigurableReference):
                return item
            scope = "/".join(item.scopes)
            if item.configurable.selector == _MACRO:
                return Macro(scope)
            return Reference(scope, self._public(item.configurable.selector), item.evaluate)

        return render(map_leaves(leaf, value))

    def _require_active(self) -> None:
        if not self.active:
            raise RuntimeError("another configuration was loaded after this one; gin holds only one")


def load(files: Sequence[Path | str], overrides: Sequence[str], registry: Registry) -> Config:
    """Read gin files in order, then `--set` overrides; check everything; hand it to gin, final.

    Raises UserError with file and line for whatever is wrong with them.
    """
    global _active
    clear()
    names = configurables(registry)
    reader = GinReader()
    for file in files:
        reader.file(file)
    for text in overrides:
        reader.override(text)
    checker = Checker(reader.bindings, names, registry)
    checker.check()
    for binding in reader.bindings.values():
        gin.bind_parameter(_gin_key(binding, names), _gin_value(binding.value, names))
    gin.finalize()
    _active = Config(reader.bindings, names, checker)
    return _active


def clear() -> None:
    """Forget the loaded configuration; what is registered stays."""
    global _active
    _active = None
    gin.clear_config()


def _gin_key(binding: Binding, names: Mapping[str, Configurable]) -> tuple[str, str, str]:
    if binding.name:
        return binding.scope, names[binding.name].selector, binding.parameter
    return binding.key, _MACRO, "value"


def _gin_value(value: Any, names: Mapping[str, Configurable]) -> Any:
    def leaf(item: Any) -> Any:
        if isinstance(item, Macro):
            return gin.config.ConfigurableReference(f"{item.name}/{_MACRO}", True)
        if isinstance(item, Reference):
            return gin.config.ConfigurableReference(scoped(item.scope, names[item.name].selector), item.evaluate)
        return item

    return map_leaves(leaf, value)


def _lies_in(folders: Sequence[Path], place: Location) -> bool:
    """Whether it is a line of a file there; what `--set` says has no line."""
    return place.line is not None and any(Path(place.file).resolve().is_relative_to(each) for each in folders)


def _text(bindings: Any) -> str:
    macros = sorted(str(binding) for binding in bindings if not binding.name)
    others = sorted(str(binding) for binding in bindings if binding.name)
    return "\n".join([*macros, *others, ""])


def _unwrapped(error: BaseException) -> BaseException:
    """The exception that was raised, from within those that gin made of it.

    gin raises a subclass of the exception's own class, of the same name, while it handles the exception.
    """
    inner = error.__context__
    while inner is not None and type(error).__bases__ == (type(inner),) and _same_name(type(error), type(inner)):
        error, inner = inner, inner.__context__
    return error


def _same_name(proxy: type, wrapped: type) -> bool:
    return proxy.__qualname__ == wrapped.__qualname__ and proxy.__module__ == wrapped.__module__


def _lacking(error: Exception) -> UserError | None:
    """The error for arguments that gin says nobody supplied, if that is what went wrong."""
    text = str(error)
    found = re.search(r"No values supplied by Gin or caller for arguments: \[(.*)\]", text)
    if not isinstance(error, TypeError) or not found:
        return None
    called = re.search(r"In call to configurable '([^']+)'(?:.*in scope '([^']+)')?", text)
    name, scope = (called[1].removeprefix("mcframe."), called[2] or "") if called else ("the configurable", "")
    return missing_error(scope, name, re.findall(r"'(\w+)'", found[1]))
