"""A mixture of text sources: every document is drawn from one of them, with a probability for each."""

from __future__ import annotations

import itertools
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mcframe.bounds import Positive, Seed
from mcframe.data.cache import cache_key, fingerprint
from mcframe.data.positions import Position, positioned
from mcframe.data.sources import StandardLibrary
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource


class Mixture(TextSource):
    """Documents of several text sources. An epoch ends when a source that is drawn has no more documents.

    Args:
        sources: Text sources, such as `@prose/text.local_files`; settings of a scope hold for its source alone. None is
            `[@text.standard_library]`.
        weights: The fraction of documents of each source, up to a common factor; None for equal fractions.
        seed: Determines the order in which sources are drawn.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Callable[[], TextSource]] | None = None,
        weights: Sequence[Positive] | None = None,
        seed: Seed = 0,
    ) -> None:
        self._sources = [_checked(build()) for build in (sources or (StandardLibrary,))]
        self._weights = [1.0] * len(self._sources) if weights is None else [float(each) for each in weights]
        self._seed = seed
        self.streaming = any(source.streaming for source in self._sources)
        self.chats = any(source.chats for source in self._sources)
        if len(self._weights) != len(self._sources):
            raise UserError(
                f"text.mixture.weights: expected {len(self._sources)} weights, one for each source, got "
                f"{len(self._weights)}",
                binding="text.mixture.weights",
                remedy="Set text.mixture.weights to one number for each of text.mixture.sources.",
            )

    @property
    def identity(self) -> str:
        """A string that changes with the sources, the weights and the seed."""
        parts = [cache_key(source) for source in self._sources]
        return f"mixture:{fingerprint([parts, self._weights, self._seed])}"

    def describe(self) -> str:
        """Return the description of each source after its fraction of the documents."""
        total = sum(self._weights)
        parts = zip(self._sources, self._weights, strict=True)
        return "\n".join(
            f"{weight / total:.1%} of {type(source).__name__}: {source.describe()}" for source, weight in parts
        )

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Yield documents. The source of each is a function of the seed, the epoch and the document's number."""
        return (text for text, _ in self.positioned_documents(epoch))

    def positioned_documents(self, epoch: int = 0, after: Any = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents after a position: [documents, the position in each source]."""
        drawn, before = after or (0, [None] * len(self._sources))
        positions: list[Position | None] = list(before)
        iterators = [positioned(*each) for each in zip(self._sources, itertools.repeat(epoch), positions)]
        bounds = list(itertools.accumulate(self._weights))
        for draw in itertools.count(drawn):
            point = random.Random(f"mixture/{self._seed}/{epoch}/{draw}").random() * bounds[-1]
            index = min(bisect(bounds, point), len(bounds) - 1)
            found = next(iterators[index], None)
            if found is None:
                return
            text, positions[index] = found
            yield text, [draw + 1, list(positions)]


def _checked(source: object) -> TextSource:
    if not isinstance(source, TextSource):
        raise UserError(
            f"text.mixture.sources: expected text sources, got a value of type {type(source).__name__}",
            binding="text.mixture.sources",
            remedy="List references such as @text.local_files or @prose/text.local_files, without parentheses.",
        )
    return source
