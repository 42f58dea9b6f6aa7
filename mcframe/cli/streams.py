"""Standard streams that cannot end a command: any encoding, closed ones, pipes whose reader has gone."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any

from rich import control

from mcframe.errors import EXIT_USER_ERROR
from mcframe.safe_text import CONTROL_TABLE, printable

_ASCII = {
    "·": ".", "•": "*", "–": "-", "—": "-", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "×": "x", "±": "+-",
    "Δ": "d", "τ": "tau", "γ": "gamma", "†": "+", "│": "|", "─": "-", "’": "'",
}  # fmt: skip
"""ASCII text for the other characters that mcframe prints. Any character that is not here becomes a question mark."""


# Rich passes escape sequences in texts on to the terminal. It translates all its texts by this table.
_RICH_TABLE: dict[int, Any] = control._CONTROL_STRIP_TRANSLATE
_RICH_TABLE.update({code: text for code, text in CONTROL_TABLE.items() if code not in _RICH_TABLE})


def protect_streams() -> None:
    """Open closed standard streams on the null device, and let no output raise.

    A closed stream must be opened before any other file, which would otherwise get its number and then the output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("mcframe", _substitute)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - for good
    for name, number in (("stdout", 1), ("stderr", 2)):
        output = _Output.around(getattr(sys, name), number)
        setattr(sys, name, output)
        setattr(sys, f"__{name}__", output)


def echo(text: str) -> None:
    """Print a text without control characters. In an ASCII locale typer's function would print UTF-8 in spite of it."""
    print(printable(text))  # noqa: T201


def lost_output() -> int:
    """Return the exit code of a command whose standard output could not be written: 0 if its reader has gone."""
    failure = getattr(sys.stdout, "failure", None)
    return EXIT_USER_ERROR if failure not in (None, errno.EPIPE) else 0


class _Output(io.TextIOWrapper):
    """An output that goes to the null device once it has failed."""

    failure: int | None = None

    @classmethod
    def around(cls, stream: Any, number: int) -> _Output:
        """Return the output that replaces a standard stream; None is a closed one."""
        if isinstance(stream, _Output):
            return stream
        if not isinstance(stream, io.TextIOWrapper):
            return cls(open(number, "wb", closefd=False), "utf-8", "mcframe")
        encoding, line_buffering, write_through = stream.encoding, stream.line_buffering, stream.write_through
        return cls(stream.detach(), encoding, "mcframe", line_buffering=line_buffering, write_through=write_through)

    def write(self, text: str) -> int:
        """Write a text. Failures are not raised."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush. Failures are not raised."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Send the rest, and what native code and children print, to the null device."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        self.failure = error.errno
        if self is sys.stdout and error.errno != errno.EPIPE:
            sys.stderr.write(f"mcframe: the standard output cannot be written: {error.strerror}\n")


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(character, "?") for character in error.object[error.start : error.end]), error.end
