"""The numbered requirements of docs/conformance.md, each with its check."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcframe.testing.examples import for_all
from mcframe.testing.plugin_under_test import PluginUnderTest

BUILT = "P6"
"""The requirement that the factory builds the plug-in; skipped if settings are missing."""

PURE = ("M1",)
"""Requirements without which two results of a plug-in cannot be compared."""


@dataclass(frozen=True)
class Capability:
    """A property of some plug-ins on which a requirement depends.

    Attributes:
        declared: The declaration that makes the requirement apply, for the page.
        otherwise: The reason for skipping the requirement.
        has: Returns whether a built plug-in has the capability.
    """

    declared: str
    otherwise: str
    has: Callable[[Any], bool]


@dataclass(frozen=True)
class Requirement:
    """A numbered behaviour that plug-ins of some kinds must have.

    Attributes:
        id: A letter and a number, as in docs/conformance.md.
        title: The behaviour in one sentence.
        kinds: The kinds that it applies to; "*" stands for all.
        check: The function that checks a built plug-in. Its docstring is the detail on the page.
        run: Runs `check` for a plug-in, once or for random examples. Raises NotConforming or Skipped.
        needs: The capability without which it does not apply.
        after: Requirements that must hold first; it is skipped if one of them fails.
        slow: Whether it starts processes or compiles; such requirements are checked only on request.
    """

    id: str
    title: str
    kinds: tuple[str, ...]
    check: Callable[[Any], None]
    run: Callable[[PluginUnderTest], None]
    needs: Capability | None = None
    after: tuple[str, ...] = ()
    slow: bool = False

    @property
    def name(self) -> str:
        """Name of its test: `test_G1_form`."""
        return f"test_{self.id}_{self.check.__name__.partition('_')[2]}"


REQUIREMENTS: dict[str, Requirement] = {}
"""Every requirement by its id, in order of definition; `all_requirements` fills it."""

MODULES = (
    "any_kind", "loss", "model_parts", "base_model", "networks", "focus", "learning", "positions", "data", "evaluation",
    "logger", "callback", "optimizer", "runs",
)  # fmt: skip
"""The modules that define requirements, in the order of the checks."""


def requirement(
    id: str,
    title: str,
    *kinds: str,
    over: Callable[[PluginUnderTest], Any] | None = None,
    examples: int = 10,
    needs: Capability | None = None,
    after: tuple[str, ...] = (),
    slow: bool = False,
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the decorated function, named `g1_...` for requirement G1, as its check.

    Args:
        id: A letter and a number.
        title: The behaviour in one sentence.
        kinds: The kinds that it applies to; "*" stands for all.
        over: Returns the strategy of a plug-in, see `for_all`. With it the function checks one example, else the
            plug-in.
        examples: The number of examples.
        needs: The capability without which it does not apply.
        after: Requirements that must hold first.
        slow: Whether it starts processes or compiles.

    Raises:
        ValueError: The id is taken, the name does not fit the id, or `after` names an unknown requirement.
    """

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        if id in REQUIREMENTS:
            raise ValueError(f"requirement {id} has two checks")
        if not re.fullmatch(rf"{id.lower()}_[a-z0-9_]+", check.__name__):
            raise ValueError(f"requirement {id}: expected a function {id.lower()}_..., got {check.__name__}")
        if unknown := [other for other in after if other not in REQUIREMENTS]:
            raise ValueError(f"requirement {id}: unknown requirements {unknown} in `after`")
        run = check if over is None else lambda plugin: for_all(over(plugin), check, examples)
        REQUIREMENTS[id] = Requirement(id, title, kinds, check, run, needs, after, slow)
        return check

    return register


def all_requirements() -> Mapping[str, Requirement]:
    """Return all requirements in order. Imports the modules that define them."""
    for module in MODULES:
        importlib.import_module(f"mcframe.testing.{module}")
    return REQUIREMENTS


def requirements_of(kind: str) -> list[Requirement]:
    """Return the requirements of a kind, the slow ones last."""
    found = [each for each in all_requirements().values() if kind in each.kinds or "*" in each.kinds]
    return sorted(found, key=lambda each: each.slow)
