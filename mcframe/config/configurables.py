"""What a gin file can name: the factories published as gin configurables, and their parameters."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gin

from mcframe.registry.plugins import Registry

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SUPPLIED_NAMES = ("shape", "tree")
_SUPPLIED_KINDS = ("gistnet", "lensnet", "allocator", "variants", "positions", "loss", "logger")


@dataclass(frozen=True)
class Configurable:
    """A factory, the name that gin files know it by, and whether it belongs to a plug-in kind."""

    name: str
    factory: Callable[..., Any]
    kind: str

    @property
    def selector(self) -> str:
        """gin's own name for it. Names without a dot get a module, or gin would take the factory's."""
        return self.name if "." in self.name else f"mcframe.{self.name}"

    @cached_property
    def _all(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.factory).parameters

    @cached_property
    def supplied(self) -> tuple[str, ...]:
        """The parameters that the framework passes by position, which no gin file may bind."""
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
        """Does it take `**keywords`?"""
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._all.values())

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Bindable parameters without a default."""
        return tuple(
            name
            for name, parameter in self.parameters.items()
            if parameter.default is parameter.empty or parameter.default is gin.REQUIRED
        )

    def missing(self, args: int, given: set[str]) -> list[str]:
        """Required parameters that neither `args` positional arguments nor the named ones provide."""
        positional = [name for name, parameter in self._all.items() if parameter.kind in _POSITIONAL]
        provided = given.union(positional[:args])
        return [name for name in self.required if name not in provided]

    def annotation(self, parameter: str) -> Any:
        """The parameter's type, or `Any` where it has none or it cannot be resolved."""
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


def _defined(cls: type) -> set[str]:
    """Names that the class or a base below `object` defines."""
    return {name for base in cls.__mro__[:-1] for name in vars(base)}


_core: dict[str, Configurable] = {}


def register(kind: str, name: str, factory: Callable[..., Any]) -> None:
    """Publish a factory: gin files call it `kind.name`, or just `name` where the kind is empty.

    Registering again is harmless; another factory of the same name replaces the first.
    """
    published = Configurable(f"{kind}.{name}" if kind else name, factory, kind)
    _core[published.name] = published
    _publish(published)


def configurables(registry: Registry) -> dict[str, Configurable]:
    """Everything that a gin file can name: what was registered here and what plug-ins offer."""
    names = dict(_core)
    for kind, offered in registry.implementations.items():
        for entry in offered.values():
            names[f"{kind}.{entry.name}"] = published = Configurable(f"{kind}.{entry.name}", entry.factory, kind)
            _publish(published)
    return names


def _publish(published: Configurable) -> None:
    # gin refuses to register once a config is final, and to replace, unless told that both are meant.
    with gin.unlock_config(), gin.config.interactive_mode():
        gin.external_configurable(published.factory, name=published.selector, denylist=list(published.supplied) or None)
