"""The numbered clauses of docs/conformance.md, each with the one function that checks it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcframe.errors import UserError
from mcframe.testing.capabilities import CAPABILITIES

if TYPE_CHECKING:
    from mcframe.testing.plugin_under_test import PluginUnderTest

Check = Callable[["PluginUnderTest"], None]
"""Looks at a plug-in. Raises NotConforming where it breaks the clause, Skipped where nothing can be said here."""


class NotConforming(AssertionError):
    """A plug-in does not do what a clause asks. The message says what was seen."""


class Skipped(Exception):
    """A check does not apply to this plug-in or cannot be made on this machine. The message is the reason."""


STEADY = ("M1", "M2", "M3")
"""What a plug-in must keep before two of its results can be compared."""


@dataclass(frozen=True)
class Requirement:
    """A numbered behaviour that plug-ins of some kinds must have.

    id       a letter and a number, as in docs/conformance.md
    title    the behaviour in one sentence
    kinds    the kinds of plug-in that it is asked of; "*" = all
    needs    the capability without which it does not apply, from `capabilities`; empty = always
    after    clauses without which this one means nothing: it is skipped where one of them fails
    slow     it starts processes or compiles, and runs only where asked for
    """

    id: str
    title: str
    kinds: tuple[str, ...]
    check: Check
    needs: str = ""
    after: tuple[str, ...] = ()
    slow: bool = False

    @property
    def name(self) -> str:
        """What a test of it is called: `test_G1_shape`."""
        return f"test_{self.id}_{self.check.__name__.partition('_')[2]}"


CLAUSES: dict[str, Requirement] = {}
"""Every clause by its id, in the order of its definition; `every_clause` fills it."""

HOMES = (
    "plugins", "parts", "gistnet", "lensnet", "allocator", "variants", "networks", "learning",
    "positions", "loss", "text", "tokenizer", "task", "evaluation", "logger", "callback", "in_training",
)  # fmt: skip
"""The modules that define clauses, in the order in which clauses are checked and may depend on each other."""


def requirement(
    id: str,
    title: str,
    *kinds: str,
    needs: str = "",
    after: tuple[str, ...] = (),
    slow: bool = False,
) -> Callable[[Check], Check]:
    """Register the decorated function as the check of a clause. It is called `g1_...` for clause G1.

    Raises ValueError where the id is taken, the name is not the clause's, or a capability or clause is unknown.
    """

    def register(check: Check) -> Check:
        if id in CLAUSES:
            raise ValueError(f"clause {id} has two checks")
        if not re.fullmatch(rf"{id.lower()}_[a-z0-9_]+", check.__name__):
            raise ValueError(f"the check of clause {id} is called {check.__name__}, not {id.lower()}_...")
        unknown = [other for other in after if other not in CLAUSES]
        if unknown or (needs and needs not in CAPABILITIES):
            raise ValueError(f"clause {id} depends on {[*unknown, needs]}, which nobody knows")
        CLAUSES[id] = Requirement(id, title, kinds, check, needs, after, slow)
        return check

    return register


def clauses_of(kind: str) -> list[Requirement]:
    """The clauses that are asked of a kind, the slow ones last."""
    asked = [each for each in every_clause().values() if kind in each.kinds or "*" in each.kinds]
    return sorted(asked, key=lambda each: each.slow)


def every_clause() -> Mapping[str, Requirement]:
    """All clauses, in order. Loads the modules that define them."""
    for home in HOMES:
        importlib.import_module(f"mcframe.testing.{home}")
    return CLAUSES


def expect(holds: bool, message: str) -> None:
    """Raise NotConforming with this message unless it holds."""
    if not holds:
        raise NotConforming(message)


def in_words(error: BaseException) -> str:
    """The error, and where in the code it arose."""
    while isinstance(error, BaseExceptionGroup):  # hypothesis saw several: the first will do
        error = error.exceptions[0]
    if isinstance(error, NotConforming | UserError):
        return str(error)
    trace, place = error.__traceback__, ""
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
    return f"{type(error).__name__}: {error} ({place})"
