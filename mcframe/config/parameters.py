"""What can be bound of a configurable, as gin lines: names, types, defaults."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from mcframe.config.configurables import Configurable
from mcframe.config.values import as_literal


@dataclass(frozen=True)
class Parameter:
    """One binding that a configurable takes.

    binding    `kind.name.parameter`
    type       in words; empty where its author has not annotated it
    default    as gin source; None where there is none, or where it cannot be written in gin
    required   whether a value must be bound
    """

    binding: str
    type: str
    default: str | None
    required: bool

    @property
    def line(self) -> str:
        """A line to paste into a gin file; a comment where gin cannot say what the default is."""
        if self.default is not None:
            return f"{self.binding} = {self.default}"
        return f"{self.binding} = %gin.REQUIRED" if self.required else f"# {self.binding} has a default of its own"


def parameters_of(published: Configurable) -> list[Parameter]:
    """What a gin file may bind, in the order of the signature."""
    return [
        Parameter(
            f"{published.name}.{name}",
            type_in_words(published.annotation(name)),
            None if name in published.required else _default(published, parameter),
            name in published.required,
        )
        for name, parameter in published.parameters.items()
    ]


def gin_lines(parameters: list[Parameter]) -> list[str]:
    """The lines, each with its type as a comment, in a column."""
    width = max((len(each.line) for each in parameters), default=0)
    return [f"{each.line:{width}}  # {each.type}" if each.type else each.line for each in parameters]


def type_in_words(annotation: Any) -> str:
    """`int or None`, `'mean' or 'query'`; empty for a type that says nothing."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return ""
    if get_origin(annotation) is Literal:
        *most, last = map(repr, get_args(annotation))
        return f"{', '.join(most)} or {last}" if most else last
    if annotation is type(None):
        return "None"
    if inspect.isclass(annotation) and not get_args(annotation):
        return annotation.__name__
    if type(None) in get_args(annotation) or " | " in str(annotation):
        return " or ".join(map(type_in_words, get_args(annotation)))
    return re.sub(r"[\w.]+\.(?=\w)", "", str(annotation))  # without the modules of its names


def _default(published: Configurable, parameter: inspect.Parameter) -> str | None:
    value = parameter.default
    if dataclasses.is_dataclass(published.factory):
        # Its signature holds a sentinel where the default is made anew for each instance.
        made = {field.name: field.default_factory for field in dataclasses.fields(published.factory)}
        factory = made.get(parameter.name, dataclasses.MISSING)
        value = value if factory is dataclasses.MISSING else factory()
    return as_literal(value)
