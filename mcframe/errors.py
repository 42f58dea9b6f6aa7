"""Errors that are for the person at the keyboard: one message, the place, the remedy, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as a shell says it."""


@dataclass(frozen=True)
class Location:
    """Where a mistake was made: a file and, where known, its line (from 1)."""

    file: Path | str
    line: int | None = None

    def __str__(self) -> str:
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"


def require(holds: bool, binding: str, value: object, rule: str) -> None:
    """Raises UserError naming the binding, its value and the rule, unless the rule holds."""
    if not holds:
        raise UserError(f"{binding} is {value!r}; it must be {rule}", remedy=f"set {binding} to a value that is {rule}")


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """' (did you mean A or B?)' with the options that look like `name`, or nothing."""
    near = difflib.get_close_matches(name, sorted(options), n=3, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, option, name).ratio() for option in near]
    # A clear best match stands alone: names of one kind resemble each other by their common beginning.
    near = [option for option, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - 0.1]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


class UserError(Exception):
    """Something that a user can put right.

    `message` says what is wrong, `remedy` what to do about it, `place` where (a gin file and line).
    The command line prints these three and exits with code 2; a traceback only under `--traceback`.
    """

    def __init__(self, message: str, *, remedy: str = "", place: Location | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.place = place

    def at(self, place: Location | None) -> UserError:
        """The same error, placed, unless it already has a place."""
        return self if self.place or place is None else UserError(self.message, remedy=self.remedy, place=place)

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        remedy = f"\n  remedy: {self.remedy}" if self.remedy else ""
        return f"{where}{self.message}{remedy}"
