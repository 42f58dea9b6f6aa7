"""The factories that a gin file can name, registered as gin configurables, and their parameters."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gin

from mcframe.config.values import scoped
from mcframe.data.cache import record_settings
from mcframe.errors import UserError
from mcframe.registry.plugins import Registered, Registry

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SUPPLIED_NAMES = ("shape", "tree")
_SUPPLIED_KINDS = ("base", "gistnet", "lensnet", "allocator", "variants", "positions", "loss", "logger")


@dataclass(frozen=True)
class Configurable:
    """A factory with the name that gin files use, and its plug-in kind (empty for core settings)."""

    name: str
    factory: Callable[..., Any]
    kind: str

    @property
    def selector(self) -> str:
        """The name within gin. Names without a dot get a module; otherwise gin would take the factory's."""
        return self.name if "." in self.name else f"mcframe.{self.name}"

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.factory)

    @property
    def _all(self) -> Mapping[str, inspect.Parameter]:
        return self._signature.parameters

    @cached_property
    def supplied(self) -> tuple[str, ...]:
        """The parameters that the framework passes by position; no gin file may bind them."""
        only = tuple(name for name, parameter in self._all.items() if parameter.kind is parameter.POSITIONAL_ONLY)
        first = next(iter(self._all.values()), None)
        if only or first is None or first.kind not in _POSITIONAL or first.default is not first.empty:
            return only
        by_contract = self.kind in _SUPPLIED_KINDS or first.name in _SUPPLIED_NAMES
        return (first.name,) if by_contract else ()

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters that a gin file may bind."""
        return {
            name: parameter
            for name, parameter in self._all.items()
            if parameter.kind not in _VARIADIC and name not in self.supplied
        }

    @cached_property
    def accepts_any(self) -> bool:
        """True if the factory takes `**keywords`."""
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._all.values())

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Bindable parameters without a default."""
        return tuple(
            name for name, each in self.parameters.items() if each.default is each.empty or each.default is gin.REQUIRED
        )

    def missing(self, args: int, names: set[str]) -> list[str]:
        """Return the required parameters that neither `args` positional arguments nor `names` provide."""
        positional = [name for name, parameter in self._all.items() if parameter.kind in _POSITIONAL]
        provided = names.union(positional[:args])
        return [name for name in self.required if name not in provided]

    def annotation(self, parameter: str) -> Any:
        """Return the parameter's type, or `Any` if it has none or it cannot be resolved."""
        function = self.factory
        if inspect.isclass(function):
            function = function.__init__ if "__init__" in _defined(function) else function.__new__
        function = inspect.unwrap(function)

        def probe() -> None: ...

        # One at a time: an annotation that exists only for the type checker must not hide its neighbours.
        probe.__annotations__ = {parameter: getattr(function, "__annotations__", {}).get(parameter, Any)}
        try:
            scope = getattr(function, "__globals__", {})
            return typing.get_type_hints(probe, globalns=scope, include_extras=True)[parameter]
        except (NameError, AttributeError, TypeError, SyntaxError):
            return Any

    def checked(self) -> Callable[..., Any]:
        """Return the factory with a check that every required parameter has a value."""

        @functools.wraps(self.factory, updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            if missing := self.missing(len(args), set(kwargs)):
                raise missing_error(gin.current_scope_str(), self.name, missing)
            product = self.factory(*args, **kwargs)
            if self.kind in ("text", "tokenizer"):
                record_settings(product, kwargs)
            return product

        call.__signature__ = self._signature  # type: ignore[attr-defined]
        return call


def missing_error(scope: str, name: str, missing: list[str]) -> UserError:
    """Return the error for required parameters without a value."""
    keys = " and ".join(f"{scoped(scope, name)}.{parameter} = ..." for parameter in missing)
    return UserError(f"{name}: missing values for {', '.join(missing)}", remedy=f"Add {keys}.")


def _defined(cls: type) -> set[str]:
    """Return the names that the class or a base below `object` defines."""
    return {name for base in cls.__mro__[:-1] for name in vars(base)}


SHORT_NAMES = {"base.gpt": "gpt"}
"""Plug-ins whose settings have a name without the kind: `run.base = @base.gpt`, but `gpt.depth = 12`."""


def configurable_of(entry: Registered) -> Configurable:
    """Return a registered plug-in under the name of its settings."""
    name = f"{entry.kind}.{entry.name}"
    return Configurable(SHORT_NAMES.get(name, name), entry.factory, entry.kind)


_core: dict[str, Configurable] = {}
_registered: dict[str, Configurable] = {}


def register(kind: str, name: str, factory: Callable[..., Any]) -> None:
    """Register a factory under `kind.name`, or under `name` if the kind is empty.

    Registering again is harmless; another factory of the same name replaces the first.
    """
    configurable = _in_gin(f"{kind}.{name}" if kind else name, factory, kind)
    _core[configurable.name] = configurable


def configurables(registry: Registry) -> dict[str, Configurable]:
    """Return everything that a gin file can name: core settings, and what plug-ins register."""
    names = dict(_core)
    for kind, offered in registry.implementations.items():
        for entry in offered.values():
            own = configurable_of(entry)
            names[own.name] = names[f"{kind}.{entry.name}"] = _in_gin(own.name, own.factory, kind)
    return names


def _in_gin(name: str, factory: Callable[..., Any], kind: str) -> Configurable:
    """Return the configurable of a name, registered in gin unless gin has this factory already."""
    known = _registered.get(name)
    if known is not None and known.factory is factory and known.kind == kind:
        return known
    _registered[name] = new = Configurable(name, factory, kind)
    # gin refuses to register after a config is final, and to replace, unless both are declared as intended.
    with gin.unlock_config(), gin.config.interactive_mode():
        gin.external_configurable(new.checked(), name=new.selector, denylist=list(new.supplied) or None)
    return new
