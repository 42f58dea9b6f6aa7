"""Comparing bindings with the configurables that they name, before anything runs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from mcframe.config.configurables import Configurable
from mcframe.config.values import Binding, Macro, Reference, leaves, map_leaves, render, scoped
from mcframe.errors import UserError
from mcframe.registry.plugins import KINDS, Registry, did_you_mean

RENAMED_BINDINGS = {
    "gpt.rope_base": "positions.gaussian_rope.base",
    "gpt.placement": "positions.gaussian_rope.placement",
    "gpt.smoothing": "positions.gaussian_rope.smoothing",
}
"""Parameters that have another name since a file was written."""


class Checker:
    """Checks a whole configuration. Each check raises UserError at the binding's place."""

    def __init__(self, bindings: Mapping[str, Binding], names: Mapping[str, Configurable], registry: Registry) -> None:
        self._bindings = bindings
        self._names = names
        self._registry = registry

    def check(self) -> None:
        """Names first, then macros, values that must be set, types, and what referenced factories lack."""
        bindings = list(self._bindings.values())
        for binding in bindings:
            self._check_names(binding)
        for binding in bindings:
            self.resolve(binding)
        self._check_set(bindings)
        for binding in bindings:
            if binding.name:
                self._check_type(binding)
        for binding in bindings:
            if binding.name:
                self._check_complete(binding)

    def resolve(self, binding: Binding) -> Any:
        """The binding's value with every macro replaced by what it stands for."""
        return self._resolve(binding.value, binding, () if binding.name else (binding.key,))

    def bound(self, scope: str | None, name: str) -> set[str]:
        """Parameters of a configurable that are bound when it is called in this scope; None stands for any."""
        return {
            b.parameter for b in self._bindings.values() if b.name == name and (scope is None or within(b.scope, scope))
        }

    # ---- names -----------------------------------------------------------------------------------
    def _check_names(self, binding: Binding) -> None:
        if binding.name:
            self._check_parameter(binding)
        for leaf in leaves(binding.value):
            if isinstance(leaf, Reference) and leaf.name not in self._names:
                raise self._unknown(leaf.name, "@").at(binding.place)

    def _check_parameter(self, binding: Binding) -> None:
        full = f"{binding.name}.{binding.parameter}"
        published = self._names.get(binding.name)
        if published is None:
            if full in self._names:
                raise UserError(
                    f"{full} is something to choose, not a parameter",
                    remedy=f"refer to it as @{full}, or bind a parameter of it: {full}.PARAMETER = ...",
                    place=binding.place,
                )
            raise self._unknown(binding.name, "").at(binding.place)
        if binding.parameter in published.supplied:
            raise UserError(
                f"{full} is supplied by the framework and cannot be bound", remedy="remove it", place=binding.place
            )
        if full in RENAMED_BINDINGS:
            raise UserError(
                f"{full} is called {RENAMED_BINDINGS[full]} now",
                remedy=f"bind {RENAMED_BINDINGS[full]} instead",
                place=binding.place,
            )
        if binding.parameter not in published.parameters and not published.accepts_any:
            there = ", ".join(published.parameters) or "none"
            raise UserError(
                f"{binding.name} has no parameter {binding.parameter!r}"
                f"{did_you_mean(binding.parameter, published.parameters)}",
                remedy=f"its parameters are: {there}",
                place=binding.place,
            )

    def _unknown(self, name: str, mark: str) -> UserError:
        kind, _, item = name.partition(".")
        if kind in KINDS and item:
            return self._registry.unknown(kind, item)
        return UserError(
            f"nothing is called {mark}{name}{did_you_mean(name, self._names)}",
            remedy=f"names are written in full, kind.name; there are: {', '.join(sorted(self._names))}",
        )

    # ---- macros and required values --------------------------------------------------------------
    def _resolve(self, value: Any, binding: Binding, path: tuple[str, ...]) -> Any:
        def leaf(item: Any) -> Any:
            if not isinstance(item, Macro) or item.required:
                return item
            if item.name in path:
                raise UserError(
                    f"macros stand for each other: {' = %'.join([*path, item.name])}",
                    remedy="give one of them a value",
                    place=binding.place,
                )
            target = self._bindings.get(item.name)
            if target is None or target.name:
                macros = [b.key for b in self._bindings.values() if not b.name]
                near = did_you_mean(f"%{item.name}", [f"%{macro}" for macro in macros])
                raise UserError(
                    f"{binding.key} uses {item}, which is not defined{near}",
                    remedy=f"define it on a line of its own: {item.name} = ...",
                    place=binding.place,
                )
            return self._resolve(target.value, binding, (*path, item.name))

        return map_leaves(leaf, value)

    def _check_set(self, bindings: list[Binding]) -> None:
        required = [b for b in bindings if any(isinstance(i, Macro) and i.required for i in leaves(b.value))]
        if required:
            keys = ", ".join(binding.key for binding in required)
            raise UserError(
                f"a value must be set for: {keys}",
                remedy=f"bind it in a gin file behind the include, or with --set '{required[0].key} = ...'",
                place=required[0].place,
            )

    # ---- types -----------------------------------------------------------------------------------
    def _check_type(self, binding: Binding) -> None:
        published = self._names[binding.name]
        parameter = published.parameters.get(binding.parameter)
        value = self.resolve(binding)
        if parameter is None or any(isinstance(leaf, Reference) and leaf.evaluate for leaf in leaves(value)):
            return  # what a reference returns is known only when it is called
        value = map_leaves(lambda leaf: self._names[leaf.name].factory if isinstance(leaf, Reference) else leaf, value)
        if type(value) is type(parameter.default) and value == parameter.default:
            return  # `x: int = None` is a slip of its author's, and the operative config repeats the default
        annotation = published.annotation(binding.parameter)
        problem = _mismatch(annotation, value)
        if problem:
            raise self._wrong_type(binding, annotation, value, problem).at(binding.place)

    def _wrong_type(self, binding: Binding, annotation: Any, value: Any, problem: str) -> UserError:
        choices = [choice for part in _parts(annotation) if get_origin(part) is Literal for choice in get_args(part)]
        if choices:
            near = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
            listed = ", ".join(map(render, choices))
            return UserError(f"{binding}: not one of the choices{near}", remedy=f"write one of: {listed}")
        message = f"{binding}: expected {_type_name(annotation)}, got {type(value).__name__} ({problem})"
        if isinstance(value, str):
            references = [name for name in self._names if name.partition(".")[2] == value]
            if references and callable_wanted(annotation):
                return UserError(message, remedy=f"refer to it: {binding.key} = @{references[0]}")
            if _is_literal_of(annotation, value):
                return UserError(message, remedy=f"write it without quotes: {binding.key} = {value}")
        if isinstance(value, list) and not _mismatch(annotation, tuple(value)):
            return UserError(message, remedy=f"write a tuple: {binding.key} = {render(tuple(value))}")
        return UserError(message, remedy=f"give {binding.key} a value of type {_type_name(annotation)}")

    # ---- completeness ----------------------------------------------------------------------------
    def _check_complete(self, binding: Binding) -> None:
        for leaf in leaves(self.resolve(binding)):
            if not isinstance(leaf, Reference):
                continue
            target = self._names[leaf.name]
            if leaf.evaluate and target.supplied:
                raise UserError(
                    f"{binding}: the framework calls {leaf.name} itself, with {', '.join(target.supplied)}",
                    remedy=f"remove the parentheses: {binding.key} = @{scoped(leaf.scope, leaf.name)}",
                    place=binding.place,
                )
            # Of other configurables it is not known what their caller passes; `Config.build` checks those.
            if leaf.evaluate or target.kind in KINDS:
                # Without a scope of its own it is called in its caller's, whichever that will be.
                missing = target.missing(0, self.bound(leaf.scope or None, leaf.name))
                if missing:
                    raise missing_error(leaf.scope, leaf.name, missing).at(binding.place)


def missing_error(scope: str, name: str, missing: list[str]) -> UserError:
    """The error for parameters that nobody provides."""
    keys = [f"{scoped(scope, name)}.{parameter}" for parameter in missing]
    return UserError(
        f"{name} needs a value for {', '.join(missing)}", remedy="add " + " and ".join(f"{key} = ..." for key in keys)
    )


def within(outer: str, inner: str) -> bool:
    """Do bindings of scope `outer` hold for a call in scope `inner`?"""
    return not outer or f"{inner}/".startswith(f"{outer}/")


def callable_wanted(annotation: Any) -> bool:
    """Does a parameter of this type want a class or a function?"""
    return any(not _mismatch(annotation, example) for example in (callable_wanted, int))


def _mismatch(annotation: Any, value: Any) -> str:
    """Why a value is not of a type, or nothing. Strict: an int will do for a float, a bool not for an int."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return ""
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return ""
    except PydanticUserError:  # a pydantic model or a dataclass brings its own settings
        try:
            adapter = TypeAdapter(annotation)
        except PydanticUserError:
            return ""
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(_detail(item) for item in error.errors(include_url=False)))
    return ""


def _detail(item: Any) -> str:
    message = str(item["msg"])
    path = [str(part) for part in item["loc"] if isinstance(part, int)]
    where = f" at position {path[0]}" if path else ""
    return message[:1].lower() + message[1:] + where


def _parts(annotation: Any) -> list[Any]:
    """A type, or the members of a union of types."""
    return [annotation, *get_args(annotation)] if get_origin(annotation) is not Literal else [annotation]


def _type_name(annotation: Any) -> str:
    if inspect.isclass(annotation) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def _is_literal_of(annotation: Any, text: str) -> bool:
    try:
        return not _mismatch(annotation, ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return False
