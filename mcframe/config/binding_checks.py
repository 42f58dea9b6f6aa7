"""Checks of bindings against the configurables that they name, before anything runs."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from mcframe.config.configurables import Configurable, missing_error
from mcframe.config.parameters import bounds_text, parts, type_text
from mcframe.config.values import Binding, Macro, Reference, leaves, map_leaves, render, scoped
from mcframe.errors import UserError, did_you_mean
from mcframe.registry.plugins import KINDS, Registry
from mcframe.renamed import REMOVED_BINDINGS, new_binding, new_reference

_BOUND_ERRORS = (
    "greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short", "too_long"
)  # fmt: skip
_TINY, _HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


class Checker:
    """Checks of a complete configuration. Each raises UserError with the binding's location."""

    def __init__(self, bindings: Mapping[str, Binding], names: Mapping[str, Configurable], registry: Registry) -> None:
        self._bindings = bindings
        self._names = names
        self._registry = registry

    def check(self) -> None:
        """Check names, then macros, required values, types, and the parameters of referenced factories."""
        named = [binding for binding in self._bindings.values() if binding.name]
        for binding in self._bindings.values():
            self._located(binding, self._check_names)
        for binding in self._bindings.values():
            self._located(binding, self.resolve)
        self._check_required()
        for check in (self._check_type, self._check_complete):
            for binding in named:
                self._located(binding, check)

    def resolve(self, binding: Binding) -> Any:
        """Return the binding's value with every macro replaced by its value."""
        return self._resolve(binding.value, binding, () if binding.name else (binding.key,))

    @staticmethod
    def _located(binding: Binding, check: Any) -> None:
        try:
            check(binding)
        except UserError as error:
            raise error.at(binding.location) from None

    # ---- names -----------------------------------------------------------------------------------
    def _check_names(self, binding: Binding) -> None:
        if binding.name:
            self._check_parameter(binding)
        for leaf in leaves(binding.value):
            if isinstance(leaf, Reference) and leaf.name not in self._names:
                raise self._unknown(leaf.name, "@")

    def _check_parameter(self, binding: Binding) -> None:
        full = f"{binding.name}.{binding.parameter}"
        configurable = self._names.get(binding.name)
        if configurable and binding.parameter in configurable.supplied:
            raise UserError(f"{full} is supplied by the framework and cannot be bound", remedy="Remove it.")
        if configurable and configurable.name != binding.name:
            short = f"{configurable.name}.{binding.parameter}"
            raise UserError(f"{full} is written {short}", remedy=f"Replace {full} by {short}.")
        if configurable and (binding.parameter in configurable.parameters or configurable.accepts_any):
            return
        if renamed := new_binding(full):
            raise UserError(f"{full} has a new name: {renamed}", remedy=f"Replace {full} by {renamed}.")
        if full in REMOVED_BINDINGS:
            raise UserError(f"{full} no longer exists: {REMOVED_BINDINGS[full]}", remedy=f"Remove {full}.")
        if full in self._names:
            raise UserError(
                f"{full} is an implementation, not a parameter",
                remedy=f"Refer to it as @{full}, or bind a parameter of it: {full}.PARAMETER = ...",
            )
        if configurable is None:
            raise self._unknown(binding.name, "")
        raise UserError(
            f"{binding.name} has no parameter {binding.parameter!r}"
            f"{did_you_mean(binding.parameter, configurable.parameters)}",
            remedy=f"Use one of its parameters: {', '.join(configurable.parameters) or 'none'}.",
        )

    def _unknown(self, name: str, mark: str) -> UserError:
        if renamed := new_reference(name):
            return UserError(f"{mark}{name} has a new name: {mark}{renamed}", remedy=f"Write {mark}{renamed}.")
        kind, _, item = name.partition(".")
        if kind in KINDS and item:
            return self._registry.unknown(kind, item)
        return UserError(
            f"unknown name {mark}{name}{did_you_mean(name, self._names)}",
            remedy=f"Write the full name, kind.name. Known names: {', '.join(sorted(self._names))}.",
        )

    # ---- macros and required values --------------------------------------------------------------
    def _resolve(self, value: Any, binding: Binding, path: tuple[str, ...]) -> Any:
        def leaf(item: Any) -> Any:
            if not isinstance(item, Macro) or item.required:
                return item
            if item.name in path:
                raise UserError(
                    f"macros refer to each other: {' = %'.join([*path, item.name])}", remedy="Set one of them."
                )
            target = self._bindings.get(item.name)
            if target is None or target.name:
                macros = [f"%{b.key}" for b in self._bindings.values() if not b.name]
                raise UserError(
                    f"{binding.key} uses {item}, which is not defined{did_you_mean(f'%{item.name}', macros)}",
                    remedy=f"Define it on a line of its own: {item.name} = ...",
                )
            return self._resolve(target.value, binding, (*path, item.name))

        return map_leaves(leaf, value)

    def _check_required(self) -> None:
        required = [
            binding
            for binding in self._bindings.values()
            if any(isinstance(leaf, Macro) and leaf.required for leaf in leaves(binding.value))
        ]
        if required:
            raise UserError(
                f"missing values for {', '.join(binding.key for binding in required)}",
                remedy=f"Bind them in a gin file after the include, or with --set '{required[0].key} = ...'.",
                location=required[0].location,
            )

    # ---- types -----------------------------------------------------------------------------------
    def _check_type(self, binding: Binding) -> None:
        configurable = self._names[binding.name]
        parameter = configurable.parameters.get(binding.parameter)
        value = self.resolve(binding)
        if parameter is None or any(isinstance(leaf, Reference) and leaf.evaluate for leaf in leaves(value)):
            return  # the type of a called reference's result is unknown before the call
        value = map_leaves(lambda leaf: self._names[leaf.name].factory if isinstance(leaf, Reference) else leaf, value)
        if type(value) is type(parameter.default) and value == parameter.default:
            return  # `x: int = None` is an error of the author, and the operative config repeats the default
        annotation = configurable.annotation(binding.parameter)
        if rule := broken_bound(annotation, value):
            raise UserError(
                f"{binding.key}: expected {rule}, got {render(value)}",
                remedy=f"Set {binding.key} to {rule}.",
            )
        if problem := _mismatch(annotation, value):
            raise self._wrong_type(binding, annotation, value, problem)

    def _wrong_type(self, binding: Binding, annotation: Any, value: Any, problem: str) -> UserError:
        choices = [choice for part in parts(annotation) if get_origin(part) is Literal for choice in get_args(part)]
        if isinstance(value, str) and not _mismatch(annotation, [value]):
            return UserError(f"{binding}: expected a list, got str", remedy=f"Write {binding.key} = {render([value])}.")
        if choices:
            near = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
            listed = ", ".join(map(render, choices))
            return UserError(f"{binding}: expected one of {listed}{near}", remedy=f"Write one of: {listed}.")
        remedy = f"Set {binding.key} to a value of type {type_text(annotation)}."
        if isinstance(value, str):
            references = [name for name in self._names if value in (name, name.partition(".")[2])]
            if references and _accepts_factories(annotation):
                remedy = f"Refer to it: {binding.key} = @{references[0]}"
            elif _is_literal_of(annotation, value):
                remedy = f"Write it without quotes: {binding.key} = {value}"
        elif isinstance(value, list) and not _mismatch(annotation, tuple(value)):
            remedy = f"Write a tuple: {binding.key} = {render(tuple(value))}"
        return UserError(
            f"{binding}: expected {type_text(annotation)}, got {type(value).__name__} ({problem})", remedy=remedy
        )

    # ---- completeness ----------------------------------------------------------------------------
    def _check_complete(self, binding: Binding) -> None:
        for leaf in leaves(self.resolve(binding)):
            if not isinstance(leaf, Reference):
                continue
            target = self._names[leaf.name]
            if leaf.evaluate and target.supplied:
                raise UserError(
                    f"{binding}: the framework calls {leaf.name} itself, with {', '.join(target.supplied)}",
                    remedy=f"Remove the parentheses: {binding.key} = @{scoped(leaf.scope, leaf.name)}",
                )
            # For other configurables the arguments of the call are unknown; `Configurable.checked` checks those.
            if leaf.evaluate or target.kind in KINDS:
                # Without a scope of its own, a reference is called in the unknown scope of its caller.
                missing = target.missing(0, self._bound(leaf.scope or None, leaf.name))
                if missing:
                    raise missing_error(leaf.scope, leaf.name, missing)

    def _bound(self, scope: str | None, name: str) -> set[str]:
        """Return the parameters of a configurable that are bound in this scope; None stands for any scope."""
        return {
            b.parameter
            for b in self._bindings.values()
            if b.name == self._names[name].name and (scope is None or within(b.scope, scope))
        }


def within(outer: str, inner: str) -> bool:
    """Return whether bindings of scope `outer` hold for a call in scope `inner`."""
    return not outer or f"{inner}/".startswith(f"{outer}/")


def _accepts_factories(annotation: Any) -> bool:
    """Return whether a parameter of this type takes a class or a function."""
    return any(not _mismatch(annotation, example) for example in (_accepts_factories, int))


def broken_bound(annotation: Any, value: Any) -> str:
    """Return the rule that a number or the size of a list breaks, such as `1 or more`; empty if it is another problem.

    Every number must be finite and fit the types that tensors have: int64 and float32.
    """
    if annotation is Any or annotation is inspect.Parameter.empty:
        return ""
    for number in leaves(value):
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            return "an integer from -2**63 to 2**63 - 1"
        if isinstance(number, float) and not (number == 0 or _TINY <= abs(number) <= _HUGE):
            return "a number that float32 can hold"
    errors = [item for item in _errors(annotation, value) if item["type"] != "none_required"]
    if not errors or any(item["type"] not in _BOUND_ERRORS for item in errors):
        return ""
    rules = " ".join(dict.fromkeys(filter(None, map(bounds_text, parts(annotation)))))
    if not rules:
        return ""
    if " value" not in rules:
        noun = "values" if isinstance(value, (list, tuple, dict)) else "a number"
        rules = f"{noun} of {rules}" if rules[0].isdigit() else f"{noun} {rules}"
    return rules + (", or None" if type(None) in get_args(annotation) else "")


def _mismatch(annotation: Any, value: Any) -> str:
    """Return why a value is not of a type, or an empty string. An int is a float; a bool is not an int."""
    return "; ".join(dict.fromkeys(map(_detail, _errors(annotation, value))))


def _errors(annotation: Any, value: Any) -> Sequence[Any]:
    """Return pydantic's errors for a value of a type."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return ()
    try:
        adapter = _adapter(annotation)
    except TypeError:  # it cannot be hashed
        adapter = _adapter.__wrapped__(annotation)
    if adapter is None:
        return ()
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors(include_url=False)
    return ()


@functools.lru_cache(maxsize=1024)
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """Return pydantic's check of a type, or None if there is none. It takes longer to build than to use."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return None
    except PydanticUserError:  # a pydantic model or a dataclass brings a config of its own
        try:
            return TypeAdapter(annotation)
        except PydanticUserError:
            return None


def _detail(item: Any) -> str:
    message = str(item["msg"])
    path = [str(part) for part in item["loc"] if isinstance(part, int)]
    where = f" at position {path[0]}" if path else ""
    return message[:1].lower() + message[1:] + where


def _is_literal_of(annotation: Any, text: str) -> bool:
    try:
        return not _mismatch(annotation, ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return False
