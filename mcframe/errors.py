"""Errors that a user can fix: one message, its location, a remedy, exit code 2."""

from __future__ import annotations

import difflib
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
"""128 plus the number of SIGINT, as shells report it."""

ONE_REQUEST_S = 0.5
"""Seconds within which several signals are one request: a Ctrl-C may arrive from the terminal and from a command."""


@dataclass(frozen=True)
class Location:
    """A file and, where known, a line of it (from 1)."""

    file: Path | str
    line: int | None = None

    def __str__(self) -> str:
        return encodable(str(self.file) if self.line is None else f"{self.file}:{self.line}")


def encodable(text: str) -> str:
    r"""Return the text with lone surrogates, of names that are not UTF-8, as escapes such as `\udc80`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class UserError(Exception):
    """An error that a user can fix.

    Args:
        message: The problem.
        remedy: What to do about it, in the imperative.
        location: The file and line of the cause.
        binding: The gin binding that the error concerns, such as `gpt.width`; its location is attached later.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        location: Location | None = None,
        binding: str = "",
    ) -> None:
        super().__init__(encodable(message))
        self.message, self.remedy = encodable(message), encodable(remedy)
        self.location = location if location and location.file else None
        self.binding = binding

    def at(self, location: Location | None) -> UserError:
        """Set the location unless there already is one, and return the error."""
        self.location = self.location or location
        return self

    def __str__(self) -> str:
        where = f"{self.location}: " if self.location else ""
        remedy = f"\n  remedy: {self.remedy}" if self.remedy else ""
        return f"{where}{self.message}{remedy}"


_LOST = re.compile(
    r"connection (was )?(closed|reset)|broken pipe|gloo/transport|timed out waiting|socket timeout|nccl", re.IGNORECASE
)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether a collective failed because another rank has ended, or does not take part."""
    return type(error).__name__.startswith("Dist") or (
        isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))
    )


class Interrupt(KeyboardInterrupt):
    """A signal of the user, as opposed to a KeyboardInterrupt that code raises.

    Args:
        number: The signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number, self.raised = number, time.monotonic()


interrupts: list[Interrupt] = []
"""Those that were raised in this process, dropped ones included: an import that loses one fails later, without it."""


def interrupt_of(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that an error is, or that it replaced: libraries turn one into an error of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def interrupted_code(error: KeyboardInterrupt) -> int:
    """Return the exit code after an interrupt, 128 plus the number of the signal."""
    return 128 + getattr(error, "number", signal.SIGINT)


def raise_interrupt(number: int = signal.SIGINT, frame: object = None) -> None:
    """Raise Interrupt: the handler of the signals that end a command.

    A signal of the same request as the last Interrupt raises nothing: it would interrupt what handles that one.
    """
    if interrupts and time.monotonic() - interrupts[-1].raised < ONE_REQUEST_S:
        return
    interrupts.append(Interrupt(number))
    raise Interrupt(number)


def require(holds: bool, binding: str, value: object, rule: str, remedy: str = "") -> None:
    """Raise UserError with the binding, its value and the rule, unless the rule holds."""
    if not holds:
        raise UserError(
            f"{binding}: expected {rule}, got {value!r}",
            remedy=remedy or f"Set {binding} to a value that is {rule}.",
            binding=binding,
        )


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ' (did you mean A or B?)' with the options most similar to `name`, or an empty string."""
    near = difflib.get_close_matches(name, sorted(options), n=3, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, option, name).ratio() for option in near]
    # A clear best match stands alone: names of one kind resemble each other by their common beginning.
    near = [option for option, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - 0.1]
    return f" (did you mean {' or '.join(near)}?)" if near else ""
