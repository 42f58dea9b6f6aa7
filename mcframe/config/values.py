"""Bindings and their values: Python literals with references (`@name`) and macros (`%name`) in them."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mcframe.errors import Location


@dataclass(frozen=True, repr=False)
class Reference:
    """`@scope/name`, the configurable itself, or `@scope/name()`, its result."""

    scope: str
    name: str
    evaluate: bool

    def __repr__(self) -> str:
        return f"@{scoped(self.scope, self.name)}{'()' if self.evaluate else ''}"


@dataclass(frozen=True, repr=False)
class Macro:
    """`%name`, the value of `name = ...`."""

    name: str

    @property
    def required(self) -> bool:
        """Whether it is gin's mark for a value that the user must set."""
        return self.name in ("gin.REQUIRED", "REQUIRED")

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True)
class Binding:
    """`scope/name.parameter = value` with its location. For a macro, `parameter = value`, `name` is empty."""

    scope: str
    name: str
    parameter: str
    value: Any
    location: Location

    @property
    def key(self) -> str:
        """The left-hand side."""
        return scoped(self.scope, f"{self.name}.{self.parameter}" if self.name else self.parameter)

    def __str__(self) -> str:
        return f"{self.key} = {render(self.value)}"


def scoped(scope: str, name: str) -> str:
    """Return `scope/name`, or the name alone."""
    return f"{scope}/{name}" if scope else name


def leaves(value: Any) -> Iterator[Any]:
    """Yield everything in a value that is not itself a container."""
    if isinstance(value, dict):
        for pair in value.items():
            yield from leaves(pair)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Return the value with every leaf replaced."""
    if isinstance(value, dict):
        return {map_leaves(function, key): map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, item) for item in value)
    return function(value)


def render(value: Any) -> str:
    """Return the value as gin source that parses to an equal value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{render(key)}: {render(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(render, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(render, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # `inf` is no literal; this overflows to it
    return repr(value)


def as_literal(value: Any) -> str | None:
    """Return the value as gin source, or None if no literal expresses it."""
    source = render(value)
    try:
        ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return None
    return source


def as_json(value: Any) -> Any:
    """Return the value in types of strict JSON; other types become their gin source."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else render(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return render(value)
