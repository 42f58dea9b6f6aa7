"""The parameters of a configurable as gin lines: names, types, defaults."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mcframe.config.configurables import Configurable
from mcframe.config.values import as_literal


@dataclass(frozen=True)
class Parameter:
    """One binding of a configurable.

    Attributes:
        binding: `kind.name.parameter`.
        type: As text; empty without an annotation.
        default: As gin source; None if there is none or gin cannot express it.
        required: Whether a value must be bound.
        meaning: Its line in the docstring of the configurable; empty if there is none.
    """

    binding: str
    type: str
    default: str | None
    required: bool
    meaning: str = ""

    @property
    def line(self) -> str:
        """A line to paste into a gin file; a comment if gin cannot express the default."""
        if self.default is not None:
            return f"{self.binding} = {self.default}"
        return f"{self.binding} = %gin.REQUIRED" if self.required else f"# {self.binding} has a default of its own"


def parameters_of(configurable: Configurable) -> list[Parameter]:
    """Return the bindable parameters, in the order of the signature."""
    meanings = _meanings(inspect.getdoc(configurable.factory) or "")
    return [
        Parameter(
            f"{configurable.name}.{name}",
            type_text(configurable.annotation(name)),
            None if name in configurable.required else _default(configurable, parameter),
            name in configurable.required,
            meanings.get(name, ""),
        )
        for name, parameter in configurable.parameters.items()
    ]


def gin_lines(parameters: list[Parameter]) -> list[str]:
    """Return the lines, each with its type as a comment, in a column."""
    width = max((len(each.line) for each in parameters), default=0)
    return [f"{each.line:{width}}  # {each.type}" if each.type else each.line for each in parameters]


def type_text(annotation: Any) -> str:
    """Return the type as text, such as `int of 1 or more, or None` or `'mean' or 'query'`; empty for `Any`."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return ""
    if get_origin(annotation) is Literal:
        *most, last = map(repr, get_args(annotation))
        return f"{', '.join(most)} or {last}" if most else last
    if annotation is type(None):
        return "None"
    if get_origin(annotation) is Annotated:
        bounds = bounds_text(annotation)
        return f"{type_text(get_args(annotation)[0])} {'of ' if bounds[:1].isdigit() else ''}{bounds}".rstrip()
    if inspect.isclass(annotation) and not get_args(annotation):
        return annotation.__name__
    if type(None) in get_args(annotation) or get_origin(annotation) is Union or " | " in str(annotation):
        members = [type_text(each) for each in get_args(annotation)]
        return (", or " if any(map(bounds_text, get_args(annotation))) else " or ").join(members)
    # Without the modules of its names, and with bounds as text.
    text = str(annotation)
    for part in filter(bounds_text, parts(annotation)):
        text = text.replace(str(part), type_text(part))
    return re.sub(r"[\w.]+\.(?=[A-Za-z_])", "", text)


def bounds_text(annotation: Any) -> str:
    """Return the bounds of an annotated type as text, such as `above 0 and up to 1` or `2 values`; empty without any.

    The bounds are those of `pydantic.Field` and of `annotated_types`.
    """
    limits: dict[str, Any] = {}
    for item in getattr(annotation, "__metadata__", ()):
        for each in (*getattr(item, "metadata", ()), item):
            found = {name: getattr(each, name, None) for name in ("ge", "gt", "le", "lt", "min_length", "max_length")}
            limits |= {name: value for name, value in found.items() if value is not None}
    low = [f"{word} {limits[name]:,}" for name, word in (("ge", "from"), ("gt", "above")) if name in limits]
    high = [f"{word} {limits[name]:,}" for name, word in (("le", "up to"), ("lt", "below")) if name in limits]
    if "ge" in limits and not high:
        return f"{limits['ge']:,} or more"
    if low or high:
        return " and ".join(low + high).replace("and up to", "to" if "ge" in limits else "and up to")
    least, most = limits.get("min_length"), limits.get("max_length")
    if least is None and most is None:
        return ""
    number = f"{least}" if least == most else f"{least} or more" if most is None else f"{least or 0} to {most}"
    return f"{number} value{'' if number == '1' else 's'}"


def parts(annotation: Any) -> list[Any]:
    """Return the type itself and all types in it: members of unions, types of items."""
    inner = get_args(annotation) if get_origin(annotation) is not Literal else ()
    return [annotation, *(part for each in inner for part in parts(each))]


def _default(configurable: Configurable, parameter: inspect.Parameter) -> str | None:
    value = parameter.default
    if dataclasses.is_dataclass(configurable.factory):
        # The signature holds a sentinel if the default is made again for each instance.
        made = {field.name: field.default_factory for field in dataclasses.fields(configurable.factory)}
        factory = made.get(parameter.name, dataclasses.MISSING)
        value = value if factory is dataclasses.MISSING else factory()
    return as_literal(value)


def _meanings(doc: str) -> dict[str, str]:
    """Return the descriptions in the `Args:` or `Attributes:` section of a docstring, by parameter."""
    section = re.search(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)+)", doc, re.M)
    entries = re.findall(r"^ {4}([\w, ]+): (.+(?:\n {5,}.+)*)", section[1] if section else "", re.M)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
