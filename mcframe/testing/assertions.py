"""Outcomes of a check as exceptions, and the text of an error."""

from __future__ import annotations

from mcframe.errors import UserError


class NotConforming(AssertionError):
    """A plug-in breaks a requirement. The message states the observation."""


class Skipped(Exception):
    """A check does not apply to this plug-in or this machine. The message is the reason."""


def expect(holds: bool, message: str) -> None:
    """Raise NotConforming with this message unless `holds`."""
    if not holds:
        raise NotConforming(message)


def describe(error: BaseException) -> str:
    """Return the error as text, with the file and line that raised it."""
    while isinstance(error, BaseExceptionGroup):  # hypothesis groups several failures; the first is enough
        error = error.exceptions[0]
    if isinstance(error, NotConforming | UserError):
        return str(error)
    trace, location = error.__traceback__, ""
    while trace is not None:
        location, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
    return f"{type(error).__name__}: {error} ({location})"
