"""Documents to one token stream, the stream to windows of T + 1 tokens that advance by T.

A separator follows every document. Window i is `stream[i * T : i * T + T + 1]`. Neighbours have one token in common,
the last target of one and the first input of the next, so that every token but the first is predicted once. Tokens at
the end that do not fill a window are dropped.

In a stream of chats, an id that is not scored as a target has the bit `UNSCORED`. The loss mask is therefore packed,
cached, shuffled and streamed with the tokens; `unpacked` separates the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcframe.data.plugin_checks import UNSCORED, encoded, encoded_chats
from mcframe.hookspecs import Chat, Tokenizer

Tokens = NDArray[np.unsignedinteger[Any]]


def token_type(vocab_size: int, chats: bool = False) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the narrowest type that holds every id: uint16 up to 65,536 entries, uint32 above and for chats."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 and not chats else np.uint32)


def separated(tokenizer: Tokenizer, texts: Sequence[str], chats: bool = False) -> list[Tokens]:
    """Return the ids of each text, with the separator after them; with loss masks if there may be chats."""
    kind = token_type(tokenizer.vocab_size, chats)
    if not chats:
        return encoded(tokenizer, texts, kind)
    plain = iter(encoded(tokenizer, [text for text in texts if not isinstance(text, Chat)], kind))
    talks = iter(encoded_chats(tokenizer, [text for text in texts if isinstance(text, Chat)], kind))
    return [next(talks if isinstance(text, Chat) else plain) for text in texts]


def unpacked(windows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the tokens of windows [n, T + 1], and their loss mask [n, T], bool; None if every target is scored."""
    unscored = np.from_dlpack(windows) >= UNSCORED  # windows come from the host: nothing is read from a device
    if not unscored.any():
        return windows, None
    return windows % UNSCORED, torch.from_numpy(~unscored[:, 1:])


class Counted:
    """Texts that are counted while they are read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self.count = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.count += 1
            yield text


def batched(texts: Iterable[str], documents: int = 256, characters: int = 4_000_000) -> Iterator[list[str]]:
    """Yield texts in batches, each closed once it holds that many documents or characters."""
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if len(batch) >= documents or held >= characters:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def window_count(tokens: int, window: int) -> int:
    """Return the number of windows of `window` + 1 tokens in a stream of `tokens`."""
    return max(0, tokens - 1) // window


def gather_windows(stream: Tokens, indices: Sequence[int] | NDArray[np.int64], window: int) -> Tensor:
    """Return windows `indices` of `stream` [tokens] -> int64 [n, window + 1].

    Raises:
        IndexError: An index is outside the stream.
    """
    rows = np.asarray(indices, dtype=np.int64)
    available = window_count(len(stream), window)
    if rows.size and not (rows.min() >= 0 and rows.max() < available):
        raise IndexError(f"windows: expected 0 to {available - 1}, got {rows.min()} to {rows.max()}")
    positions = rows[:, None] * window + np.arange(window + 1)
    return torch.from_numpy(stream[positions].astype(np.int64))
