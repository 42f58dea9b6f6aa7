"""Division of a corpus that is one document, so that a part of it can be held out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from mcframe.hookspecs import Chat

_BOUNDARIES = (re.compile(r"\n[ \t]*\n+"), re.compile(r"\n"), re.compile(r"(?<=[.!?])\s"), re.compile(r"\s"))
"""Ends of a paragraph, line, sentence and word, the preferred one first."""


def divided(documents: Iterator[str]) -> Iterator[str]:
    """Yield the documents, or the pieces of the only one; together these are its text.

    There are 64 to 1,000 pieces, of at least 4,000 characters where these make 64 or more.
    """
    first, second = next(documents, None), next(documents, None)
    if first is None:
        return
    if second is not None or isinstance(first, Chat):
        yield from chain([first, second] if second is not None else [first], documents)
        return
    yield from pieces(first, max(len(first) // 1000, min(4000, len(first) // 64), 1))


def pieces(text: str, length: int) -> Iterator[str]:
    """Yield consecutive pieces of a text. Each ends at the best boundary in `length` to 2 * `length` characters."""
    start = 0
    while len(text) - start > 2 * length:
        window = slice(start + length, start + 2 * length)
        found = (boundary.search(text, window.start, window.stop) for boundary in _BOUNDARIES)
        match = next(filter(None, found), None)
        end = match.end() if match else window.start
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
