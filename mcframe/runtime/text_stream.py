"""Text of a stream of tokens: no half characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcframe.hookspecs import Tokenizer

_REPLACEMENT = "\ufffd"
_LONGEST = 16
"""Tokens that wait for the end of a character before a part of them is decoded for good; a character has 4 bytes."""


@dataclass(frozen=True)
class Piece:
    """A generated token.

    Attributes:
        token: Its id.
        text: The text that became final with it; empty while a character or a stop string may be incomplete.
        logprob: Its log-probability in nats.
        top: The most probable tokens and their log-probabilities, if requested.
        finish_reason: "stop" after a stop string or the separator, "length" after the last token; else None.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: Literal["stop", "length"] | None = None


class TextStream:
    """Decode tokens one by one. The returned texts together are the decoded tokens up to the first stop string.

    Args:
        tokenizer: Decodes the tokens.
        stop: Stop strings. Empty ones are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(filter(None, stop))
        self.stopped = False
        """True once a stop string has occurred."""
        self._tokens: list[int] = []  # the last ones that were decoded for good, and those that were not
        self._settled, self._returned = 0, 0  # tokens and characters of `_tokens` that are decoded for good
        self._held = ""  # may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Return the text that becomes final with a token; none once `stopped`."""
        self._tokens.append(token)
        text = self.tokenizer.decode(self._tokens)
        complete = not text.endswith(_REPLACEMENT)
        new = text[self._returned : len(text) if complete else -1]  # an incomplete character is one U+FFFD at the end
        self._returned += len(new)
        if complete:
            # One token or more stay, because some tokenizers decode the first one differently.
            self._tokens = self._tokens[self._settled :]
            self._settled = len(self._tokens)
            self._returned = len(self.tokenizer.decode(self._tokens))
        elif len(self._tokens) > _LONGEST:
            self._shorten(text)
        return self._until_stop(new, final=False)

    def finish(self) -> str:
        """Return the rest of the text; an incomplete character is U+FFFD."""
        rest = self.tokenizer.decode(self._tokens)[self._returned :]
        self._tokens, self._settled, self._returned = [], 0, 0
        return self._until_stop(rest, final=True)

    def _shorten(self, text: str) -> None:
        """Remove tokens at the start if the rest decodes alone to the same text: bytes that are not UTF-8."""
        for kept in range(4, 8):
            first, last = self._tokens[:-kept], self._tokens[-kept:]
            before = self.tokenizer.decode(first)
            if len(before) <= self._returned and before + self.tokenizer.decode(last) == text:
                self._tokens, self._settled, self._returned = last, 0, self._returned - len(before)
                return

    def _until_stop(self, new: str, final: bool) -> str:
        """Return the text up to the first stop string, without an end that may be the beginning of one."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [start for each in self.stop if (start := text.find(each)) >= 0]
        self.stopped = bool(found)
        keep = min(found) if found else len(text) if final else len(text) - self._beginning(text)
        self._held = "" if found else text[keep:]
        return text[:keep]

    def _beginning(self, text: str) -> int:
        """Return the length of the longest end of a text with which a stop string begins."""
        longest = min(len(text), max(map(len, self.stop), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(each.startswith(text[-n:]) for each in self.stop)), 0)
