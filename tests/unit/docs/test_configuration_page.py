"""docs/configuration.md states every binding with its type and default, and nothing that does not exist."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mcframe.config.configurables import Configurable
from mcframe.config.run_config import SETTINGS
from mcframe.config.schema import RunConfig
from mcframe.config.values import render
from mcframe.modeling.gpt import GPT
from mcframe.registry.discovery import discover
from mcframe.registry.plugins import KINDS

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(?P<key>\w+(?:\.\w+)+)` \| (?P<type>[^|]+) \| (?P<default>[^|]+) \|[^|]*\| [^|]+ \|$", re.M)


def published() -> Iterator[Configurable]:
    for name, factory in SETTINGS.items():
        yield Configurable(name, factory, "")
    yield Configurable("gpt", GPT, "")
    yield Configurable("run", RunConfig, "")
    registry = discover()
    for kind, offered in registry.implementations.items():
        for entry in offered.values():
            if entry.distribution in ("", "mcframe"):
                yield Configurable(f"{kind}.{entry.name}", entry.factory, kind)


def expected() -> dict[str, tuple[str, str]]:
    """Binding -> (type, default) as the page writes them. What `run` gets from other groups is no binding."""
    groups = {*SETTINGS, "gpt"}
    return {
        f"{entry.name}.{name}": (type_of(entry, name), default_of(entry.factory, parameter))
        for entry in published()
        for name, parameter in entry.parameters.items()
        if not (entry.name == "run" and name in groups)
    }


def type_of(entry: Configurable, name: str) -> str:
    if entry.name == "run" and name in KINDS:
        return f"`@{name}.NAME`"
    return written(entry.annotation(name))


def written(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        *most, last = (f"`{choice!r}`" for choice in get_args(annotation))
        return f"{', '.join(most)} or {last}"
    if inspect.isclass(annotation) and not get_args(annotation):
        return annotation.__name__
    if type(None) in get_args(annotation) or str(annotation).count(" | "):
        return " or ".join("None" if part is type(None) else written(part) for part in get_args(annotation))
    return re.sub(r"[\w.]+\.(?=\w)", "", str(annotation))  # without the modules of its names


def default_of(factory: Any, parameter: inspect.Parameter) -> str:
    if dataclasses.is_dataclass(factory):
        field = next(field for field in dataclasses.fields(factory) if field.name == parameter.name)
        if field.default_factory is not dataclasses.MISSING:
            return f"`{render(field.default_factory())}`"
    return "*required*" if parameter.default is parameter.empty else f"`{render(parameter.default)}`"


def test_every_binding_is_on_the_page_with_its_type_and_default() -> None:
    stated = {row["key"]: (row["type"], row["default"]) for row in ROW.finditer(PAGE.read_text("utf-8"))}
    wrong = [
        f"| `{key}` | {kind} | {default} | unit | meaning |   (the page has {stated.get(key)})"
        for key, (kind, default) in expected().items()
        if stated.get(key) != (kind, default)
    ]
    assert not wrong, "docs/configuration.md lacks:\n" + "\n".join(wrong)
    assert sorted(stated.keys() - expected().keys()) == []


def test_no_binding_is_stated_twice() -> None:
    keys = [row["key"] for row in ROW.finditer(PAGE.read_text("utf-8"))]
    assert len(keys) == len(set(keys))


def test_every_implementation_has_a_heading() -> None:
    headings = set(re.findall(r"^#{3,4} (\S+)$", PAGE.read_text("utf-8"), re.M))
    assert {entry.name for entry in published()} - headings == set()
