"""Overlap of held-out text with training text, measured with exact strings of 64 characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcframe.data import plugin_checks
from mcframe.data.cache import cache_key, remembered
from mcframe.data.split import split_documents
from mcframe.data.text_hashes import Hashes, string_hashes
from mcframe.hookspecs import TextSource, Tokenizer

STRING = 64
"""Characters of the strings that are searched in the training text."""
COVERED = 0.9
"""A window is covered if more than this fraction of its characters is in such strings."""
SAMPLE, STREAMED_SAMPLE = 2**26, 2**23
"""Characters of training text that are read at most: of a token file's source, and of a streaming one."""
_PREFIX_BITS = 24


@dataclass(frozen=True)
class Overlap:
    """Number of held-out windows, number of those that are covered, and the training text that was read."""

    windows: int
    covered: int
    characters: int
    complete: bool

    def __str__(self) -> str:
        read = "all" if self.complete else "the first"
        return (
            f"{self.covered:,} of {self.windows:,} held-out windows ({self.covered / self.windows:.1%}) are covered by "
            f"more than {COVERED:.0%} with {STRING}-character strings of training documents, measured on {read} "
            f"{self.characters:,} characters of them"
        )


def held_out_overlap(source: TextSource, tokenizer: Tokenizer, windows: Tensor, fraction: float) -> Overlap | None:
    """Return the overlap of held-out windows [n, T + 1]; None if all are shorter than the strings."""
    texts = [text for text in (tokenizer.decode(row) for row in windows.tolist()) if len(text) >= STRING]
    if not texts:
        return None
    training = split_documents(source, plugin_checks.documents(source), "train", fraction)
    if source.streaming:  # other text can have the same identity
        return measure(texts, training, STREAMED_SAMPLE)
    key = [cache_key(source), fraction, STRING, COVERED, SAMPLE, texts]
    return Overlap(**remembered("overlap", key, lambda: asdict(measure(texts, training, SAMPLE))))


def measure(texts: Sequence[str], training: Iterable[str], limit: int) -> Overlap:
    """Return the overlap of `texts`, each of 64 characters or more, with the first `limit` characters of `training`."""
    hashes = [string_hashes(text, STRING) for text in texts]
    known = np.unique(np.concatenate(hashes))
    prefixes = np.zeros(2**_PREFIX_BITS, bool)
    prefixes[_prefix(known)] = True
    found = np.zeros(len(known), bool)
    characters, complete = 0, True
    for document in training:
        if characters >= limit:
            complete = False
            break
        characters += len(document)
        candidates = string_hashes(document, STRING)
        candidates = candidates[prefixes[_prefix(candidates)]]  # most strings end here, without a search
        positions = np.minimum(np.searchsorted(known, candidates), len(known) - 1)
        found[positions[known[positions] == candidates]] = True
    fractions = [_covered(found[np.searchsorted(known, each)]) for each in hashes]
    return Overlap(len(texts), sum(each > COVERED for each in fractions), characters, complete)


def _prefix(hashes: Hashes) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _PREFIX_BITS)).astype(np.int64)


def _covered(starts: NDArray[np.bool_]) -> float:
    """Return the fraction of characters in strings that begin where `starts` is true."""
    change = np.zeros(len(starts) + STRING, np.int64)
    change[: len(starts)] += starts
    change[STRING:] -= starts
    return float((change.cumsum()[:-1] > 0).mean())
