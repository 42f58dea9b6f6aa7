"""Text of sampled tokens, passed on as soon as it is final: complete characters that do not begin a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcframe.hookspecs import Tokenizer

_UNKNOWN = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8: an incomplete one has fewer."""


@dataclass(frozen=True)
class Piece:
    """A sampled token.

    Attributes:
        token: Its id.
        text: The text that is final with it; empty while a character or a stop string may be incomplete.
        logprob: Its log-probability under the model, in nats.
        top: The most likely tokens at its position, with log-probabilities.
        finish_reason: Why the generation ends with it; None if it goes on.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: Literal["stop", "length"] | None = None


class TextStream:
    """Decode tokens one after the other.

    Args:
        tokenizer: Decodes tokens.
        stop: Texts that end the stream; they are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.stopped = False
        """Whether a stop string occurred."""
        self._tokens: list[int] = []  # those of characters that are not complete
        self._held = ""  # text that may begin a stop string

    def push(self, token: int) -> str:
        """Return the text that is final with one more token."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        text = self.tokenizer.decode(self._tokens)
        if text.endswith(_UNKNOWN) and len(self._tokens) < _LONGEST_CHARACTER:
            return ""
        self._tokens.clear()
        return self._without_stop(text)

    def finish(self) -> str:
        """Return what was held back: the stream ends."""
        text = self.tokenizer.decode(self._tokens)
        self._tokens.clear()
        text = "" if self.stopped else self._without_stop(text)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _without_stop(self, text: str) -> str:
        """Return the held text and `text` up to a stop string, or to where one may begin."""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_begins(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _begins(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
