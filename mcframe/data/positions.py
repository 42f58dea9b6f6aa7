"""Positions in the documents of an epoch, from which a source is read without reading what comes before."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from mcframe.data.plugin_checks import check_text, documents
from mcframe.data.single_document import divided
from mcframe.hookspecs import TextSource

_log = logging.getLogger(__name__)

Position = Sequence[Any]
"""[number of documents passed, the source's own position], in values of JSON. Without the latter, documents are read
again and counted."""


def positioned(source: TextSource, epoch: int = 0, after: Position | None = None) -> Iterator[tuple[str, Position]]:
    """Yield the documents of an epoch after a position (None: all), each with the position after it.

    The only document of a source is divided into several, as by `plugin_checks.documents`.
    """
    passed, own = after or (0, None)
    pairs = source.positioned_documents(epoch, own) if own is not None or not passed else None
    if pairs is None:
        yield from _counted(source, epoch, passed)
        return
    pairs = _checked(source, pairs)
    if not passed:
        first, second = next(pairs, None), next(pairs, None)
        if second is None:
            texts = divided(iter([first[0]] if first else []))
            yield from ((text, [number, None]) for number, text in enumerate(texts, 1))
            return
        pairs = chain(filter(None, (first, second)), pairs)
    for number, (text, position) in enumerate(pairs, passed + 1):
        yield text, [number, position]


def _counted(source: TextSource, epoch: int, passed: int) -> Iterator[tuple[str, Position]]:
    """Yield the documents after so many, which are read again."""
    if passed and source.streaming:
        _log.warning(
            "text source %s has no position to resume from: reading epoch %s again from its start, %s documents",
            type(source).__name__, f"{epoch:,}", f"{passed:,}",
        )  # fmt: skip
    for number, text in enumerate(documents(source, epoch), 1):
        if number > passed:
            yield text, [number, None]


def _checked(source: TextSource, pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the pairs, each with a text.

    Raises:
        ContractError: A document is not a text.
    """
    for text, position in pairs:
        check_text(source, "positioned_documents", text)
        yield text, position
