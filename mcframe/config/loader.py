"""From gin files to a `Config`, and from a `Config` to the objects that it describes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin

from mcframe.config.binding_checks import Checker, within
from mcframe.config.configurables import SHORT_NAMES, Configurable, configurables
from mcframe.config.gin_reader import GinReader, preset_folders
from mcframe.config.parameters import parameters_of
from mcframe.config.values import Binding, Macro, Reference, as_json, map_leaves, render, scoped
from mcframe.errors import Location, UserError
from mcframe.registry.global_state import RARE_SETTINGS, SETTINGS, Setting
from mcframe.registry.plugins import Registry
from mcframe.safe_text import redacted_setting

_MACRO = "gin.macro"

_active: Config | None = None

_NOT_BY_PLUGINS = "Take settings as parameters of the factory; gin files bind them."


def _bindings() -> dict[Any, dict[str, Any]]:
    return {key: dict(parameters) for key, parameters in gin.config._CONFIG.items()}


def _rebind(bindings: dict[Any, dict[str, Any]]) -> None:
    gin.config._CONFIG.clear()
    gin.config._CONFIG.update(bindings)


SETTINGS.append(Setting("the lock of gin", gin.config_is_locked, gin.config._set_config_is_locked, _NOT_BY_PLUGINS))
RARE_SETTINGS.append(Setting("the bindings of gin", _bindings, _rebind, _NOT_BY_PLUGINS))


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
        """Call a configurable with its bindings; arguments passed here win.

        Args:
            target: Its name in gin files, or the value of a reference such as `run.gistnet = @gistnet.mean`.
            *args: Positional arguments.
            **kwargs: Keyword arguments.

        Raises:
            UserError: A required value is missing, or the constructor raised one; with the location of its binding.
            Exception: The exception of the constructor, without the text and the type that gin adds.
        """
        self._require_active()
        factory = gin.get_configurable(self._names[target].selector) if isinstance(target, str) else target
        try:
            return factory(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised again, as it was before gin wrapped it
            failure = _unwrapped(error)
        if isinstance(failure, UserError):
            self._locate(failure)
        raise failure

    @contextmanager
    def locating_errors(self) -> Iterator[None]:
        """Attach file and line to a UserError of the body that concerns a binding, as `build` does."""
        try:
            yield
        except UserError as error:
            self._locate(error)
            raise

    def bound(self) -> str:
        """Return all bindings as the text of a gin file that loads to this configuration."""
        return _text((b.key, render(_redacted(b.parameter, b.value)), bool(b.name)) for b in self.bindings.values())

    def operative(self) -> str:
        """Return the bindings used so far, defaults included, as the text of a gin file."""
        entries = []
        for (scope, selector), parameters in self._operative().items():
            name = self._public(selector)
            for parameter, value in parameters.items():
                key = scope if name == _MACRO else f"{scoped(scope, name)}.{parameter}"
                entries.append((key, self._rendered(_redacted(parameter, value)), name != _MACRO))
        return _text(entries)

    def unused(self) -> list[Binding]:
        """Return bindings that nothing has read so far: mostly misspelt macros, and settings of unused plug-ins.

        Lines of presets are not included, since a preset configures more than every run uses.
        """
        used: set[str] = set()
        for (scope, selector), parameters in self._operative().items():
            name = self._public(selector)
            for parameter in parameters:
                binding = self.bindings.get(scope) if name == _MACRO else self._winner(scope, name, parameter)
                if binding:
                    used.add(binding.key)
        folders = [folder.resolve() for folder in preset_folders()]
        return [each for key, each in self.bindings.items() if key not in used and not _is_in(folders, each.location)]

    def as_dict(self) -> dict[str, Any]:
        """Return every binding as a value of strict JSON: macros resolved, references as written, without secrets."""
        return {
            key: as_json(_redacted(binding.parameter, self._checker.resolve(binding)))
            for key, binding in self.bindings.items()
        }

    def parameters(self) -> dict[str, Any]:
        """Return `as_dict` without macros, whose values are part of the bindings that use them."""
        return {key: value for key, value in self.as_dict().items() if self.bindings[key].name}

    def default(self, key: str) -> Any:
        """Return the default of the parameter that `key` binds, in types of JSON; None if there is none."""
        binding = key.rpartition("/")[2]
        owner = self._names.get(binding.rpartition(".")[0])
        found = [each.default for each in parameters_of(owner) if each.binding == binding] if owner else []
        return as_json(ast.literal_eval(found[0])) if found and found[0] is not None else None

    def _locate(self, error: UserError) -> None:
        # A third-party plug-in may write the binding in its message alone.
        named = (key for key in self.bindings if key in error.message)
        key = error.binding if error.binding in self.bindings else max(named, key=len, default="")
        if key:
            error.at(self.bindings[key].location)

    def _winner(self, scope: str, name: str, parameter: str) -> Binding | None:
        """Return the binding that a call in this scope reads: the one with the longest matching scope."""
        matching = [
            b for b in self.bindings.values() if b.name == name and b.parameter == parameter and within(b.scope, scope)
        ]
        return max(matching, key=lambda b: len(b.scope), default=None)

    def _operative(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return what gin recorded: parameters by (scope, selector)."""
        self._require_active()
        # Private, but the public text omits what it cannot write (infinity) and shortens names.
        with gin.config._OPERATIVE_CONFIG_LOCK:
            return {key: dict(parameters) for key, parameters in gin.config._OPERATIVE_CONFIG.items()}

    def _public(self, selector: str) -> str:
        return next((name for name, each in self._names.items() if each.selector == selector), selector)

    def _rendered(self, value: Any) -> str:
        """Return a value as gin holds it, as source."""

        def leaf(item: Any) -> Any:
            if not isinstance(item, gin.config.ConfigurableReference):
                return item
            scope = "/".join(item.scopes)
            if item.configurable.selector == _MACRO:
                return Macro(scope)
            name = self._public(item.configurable.selector)
            full = next((full for full, short in SHORT_NAMES.items() if short == name), name)
            return Reference(scope, full, item.evaluate)

        return render(map_leaves(leaf, value))

    def _require_active(self) -> None:
        if not self.active:
            raise RuntimeError("another configuration was loaded after this one; gin holds only one")


def load(
    files: Sequence[Path | str], overrides: Sequence[str], registry: Registry, baseline: str | None = None
) -> Config:
    """Read gin files in order, then `--set` overrides; check everything; load it into gin, final.

    Args:
        files: Gin files.
        overrides: `--set` bindings.
        registry: The plug-ins that bindings may name.
        baseline: An option of `baselines.BASELINES` whose binding is added.

    Raises:
        UserError: Anything in them is wrong; with file and line.
    """
    global _active
    clear()
    names = configurables(registry)
    reader = GinReader()
    for file in files:
        reader.file(file)
    for text in overrides:
        reader.override(text)
    if baseline:
        reader.derive(baseline)
    checker = Checker(reader.bindings, names, registry)
    checker.check()
    for binding in reader.bindings.values():
        gin.bind_parameter(_gin_key(binding, names), _gin_value(binding.value, names))
    gin.finalize()
    _active = Config(reader.bindings, names, checker)
    return _active


def clear() -> None:
    """Remove the loaded configuration; registrations stay."""
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


def _redacted(parameter: str, value: Any) -> Any:
    return map_leaves(lambda leaf: redacted_setting(parameter, leaf), value)


def _is_in(folders: Sequence[Path], location: Location) -> bool:
    """Return whether the location is a line of a file in one of the folders; `--set` bindings have no line."""
    return location.line is not None and any(Path(location.file).resolve().is_relative_to(each) for each in folders)


def _text(entries: Any) -> str:
    """Return (key, value, whether it is a parameter) as lines: macros first, each part sorted."""
    lines = sorted((parameter, f"{key} = {value}") for key, value, parameter in entries)
    return "\n".join([*(line for _, line in lines), ""])


def _unwrapped(error: BaseException) -> BaseException:
    """Return the exception that was raised, without gin's wrappers.

    gin raises a subclass of the exception's own class, of the same name, while it handles the exception.
    """
    inner = error.__context__
    while inner is not None and type(error).__bases__ == (type(inner),) and _same_name(type(error), type(inner)):
        error, inner = inner, inner.__context__
    return error


def _same_name(proxy: type, wrapped: type) -> bool:
    return proxy.__qualname__ == wrapped.__qualname__ and proxy.__module__ == wrapped.__module__
