"""Checks of plug-ins: what a factory makes, and the shape, type and values of what a method returns.

Shapes and types cost no host synchronisation. Values are checked once, by the probe before training.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.errors import Location
from mcframe.hookspecs import INTERFACES


class ContractError(Exception):
    """A plug-in breaks its interface.

    `culprit` is the object, `method` the method that breaks it, if any, and `location` a line of it, if known.
    """

    def __init__(
        self, culprit: object, problem: str, *, method: str = "", remedy: str = "", location: Location | None = None
    ) -> None:
        super().__init__(f"{type(culprit).__name__}: {problem}")
        self.culprit, self.problem, self.method, self.remedy = culprit, problem, method, remedy
        self.location = location


def check_product(kind: str, product: object) -> None:
    """Raise ContractError unless the product fits the interface of its kind."""
    interface = INTERFACES[kind]
    if not isinstance(product, interface):
        other = next((name for name, known in INTERFACES.items() if isinstance(product, known)), None)
        raise ContractError(
            product,
            f"expected a {interface.__name__} from the factory, got {_described(product)}"
            + (f", which is a {INTERFACES[other].__name__}" if other else ""),
            remedy=f"Register it as {other}, not as {kind}." if other else f"Derive it from {_public(interface)}.",
        )
    for base in reversed(interface.__mro__):
        for name in vars(base).get("__annotations__", {}) if base.__module__.startswith("mcframe.") else ():
            if not hasattr(product, name):
                raise ContractError(
                    product,
                    f"missing attribute {name!r} of {interface.__name__}",
                    remedy=f"Set `{name}` in the class or in __init__; see {_public(interface)}.",
                )
    for name in getattr(interface, "__abstractmethods__", ()):
        _check_signature(product, interface, name)
    if isinstance(product, nn.Module):
        _check_shapes_known(product)


def check_shape(
    culprit: object, method: str, what: str, value: object, shape: Sequence[int], dtype: torch.dtype | None = None
) -> None:
    """Raise ContractError unless `value` is a tensor of this shape, and of this type if one is passed."""
    if not isinstance(value, Tensor) or value.shape != tuple(shape) or (dtype and value.dtype != dtype):
        expected = f"{list(shape)}" + (f" {_type(dtype)}" if dtype else "")
        raise_contract_error(culprit, method, f"expected {what}, here {expected}, got {_described(value)}")


def check_focus(culprit: object, method: str, focus: Tensor, tree: ContextTree, length: int | None = None) -> None:
    """Raise ContractError unless focuses [R, blocks] are valid and of this length. Waits for the device."""
    if not bool(is_valid(focus, tree).all()):
        raise_contract_error(
            culprit,
            method,
            "expected a valid focus, got one with nodes that are incomplete, unaligned, of an unknown LOD, or in the "
            "sink or the tail",
        )
    if length is not None and not bool((lengths(focus, tree) == length).all()):
        there = sorted(set(lengths(focus, tree).tolist()))
        raise_contract_error(culprit, method, f"expected focuses of {length} entries, got {', '.join(map(str, there))}")


def check_scores(culprit: object, scores: Tensor) -> None:
    """Raise ContractError unless scores are in [-1, 1]. Waits for the device."""
    low, high = (float(bound) for bound in scores.aminmax())  # both are NaN where a score is
    if not -1 <= low <= high <= 1:
        raise_contract_error(culprit, "forward", f"expected scores in [-1, 1], got scores from {low:.3g} to {high:.3g}")


def raise_contract_error(culprit: object, method: str, problem: str) -> NoReturn:
    """Raise ContractError for what a method returned."""
    interface = _public(_interface(culprit))
    raise ContractError(
        culprit, f"{method}: {problem}", method=method, remedy=f"Correct {method}; {interface} describes its result."
    )


def _check_signature(product: object, interface: type, name: str) -> None:
    declared = inspect.getattr_static(interface, name)
    if isinstance(declared, property):
        return
    expected = [each for each in inspect.signature(declared).parameters.values() if each.name != "self"]
    method = getattr(product, name)
    try:
        inspect.signature(method).bind(*(None for each in expected if each.default is each.empty))
    except TypeError as error:
        call = f"{name}({', '.join(each.name for each in expected)})"
        raise ContractError(
            product,
            f"{name}{inspect.signature(method)} cannot be called as the framework does, {call}: {error}",
            method=name,
            remedy=f"Declare it as {_public(interface)} does: def {call.replace('(', '(self, ', 1)}.",
        ) from None
    except ValueError:  # written in C: it has no signature
        return


def _check_shapes_known(module: nn.Module) -> None:
    """Raise ContractError for a lazy parameter: optimizer and ZeRO need its shape before the first forward."""
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise ContractError(
                module,
                f"__init__: expected parameters with shapes, got {name} of a lazy module, which has none before the "
                "first forward",
                method="__init__",
                remedy="Use the module that is not lazy, such as nn.Linear(shape.width, ...) for nn.LazyLinear.",
            )


def _interface(culprit: object) -> type:
    return next((known for known in INTERFACES.values() if isinstance(culprit, known)), type(culprit))


def _public(interface: type) -> str:
    return f"mcframe.hookspecs.{interface.__name__}"


def _described(value: Any) -> str:
    """Describe a value: shape and dtype of a tensor, the type of another value."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {_type(value.dtype)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
