"""Checks of what text sources, tokenizers and tasks return."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcframe.data.single_document import divided
from mcframe.hookspecs import Chat, SyntheticBatch, SyntheticTask, TextSource, Tokenizer
from mcframe.registry.checks import check_shape, raise_contract_error

_log = logging.getLogger(__name__)

SLOW = 60.0
"""Seconds after which a source that is not streamed is reported to be still read, again whenever they double."""

Ids = np.unsignedinteger[Any]
UNSCORED = 2**31
"""Bit of an id in a stream of chats that is not scored as a target."""


def documents(source: TextSource, epoch: int = 0) -> Iterator[str]:
    """Yield the source's documents; the only document of a source is divided into several.

    Raises:
        ContractError: A document is not a text.
    """
    return divided(_texts(source, epoch))


def _texts(source: TextSource, epoch: int) -> Iterator[str]:
    count, finished = 0, Event()
    if not source.streaming:
        Thread(target=lambda: _report_slow(source, lambda: count, finished), daemon=True).start()
    try:
        for document in source.documents(epoch):
            check_text(source, "documents", document)
            count += 1
            yield document
    finally:
        finished.set()


def check_text(source: TextSource, method: str, document: object) -> None:
    """Raise ContractError unless a document is a text."""
    if not isinstance(document, str):
        raise_contract_error(source, method, f"expected texts (str), got a value of type {type(document).__name__}")


def _report_slow(source: TextSource, count: Callable[[], int], finished: Event) -> None:
    """Log that a source is still read after 1, 2, 4 ... minutes: training never begins after one without end."""
    wait, seconds = SLOW, SLOW
    while not finished.wait(wait):
        _log.warning(
            "text source %s: %s documents after %.0f s and no end yet. A source without end must be streamed: set its "
            "attribute `streaming` to True",
            type(source).__name__, f"{count():,}", seconds,
        )  # fmt: skip
        wait, seconds = seconds, 2 * seconds


def encoded(tokenizer: Tokenizer, texts: Sequence[str], kind: np.dtype[Ids]) -> list[NDArray[Ids]]:
    """Return the ids of each text, with the separator after them.

    Raises:
        ContractError: The number of lists is not that of texts, or an id is not in the vocabulary.
    """
    return _arrays(tokenizer, "encode_batch", tokenizer.encode_batch(texts), len(texts), kind)


def encoded_chats(tokenizer: Tokenizer, chats: Sequence[Chat], kind: np.dtype[Ids]) -> list[NDArray[Ids]]:
    """Return the ids of each chat, with the separator after them; all but those of answers have the bit `UNSCORED`.

    Raises:
        ContractError: The number of lists is not that of chats, or an id is not in the vocabulary.
    """
    found = tokenizer.encode_chats(chats)
    ids = [[each for part, _ in parts for each in part] for parts in found]
    arrays = _arrays(tokenizer, "encode_chats", ids, len(chats), kind)
    for array, parts in zip(arrays, found, strict=True):
        answers = np.repeat([answer for _, answer in parts], [len(part) for part, _ in parts])
        array[:-1][~answers.astype(bool)] |= kind.type(UNSCORED)
        array[-1] |= kind.type(UNSCORED)
    return arrays


def _arrays(
    tokenizer: Tokenizer, method: str, found: Sequence[Sequence[int]], count: int, kind: np.dtype[Ids]
) -> list[NDArray[Ids]]:
    """Return lists of ids as arrays, with the separator after each."""
    if len(found) != count:
        raise_contract_error(tokenizer, method, f"expected {count} lists of ids, one a text, got {len(found)}")
    try:
        arrays = [np.array([*ids, tokenizer.separator], dtype=kind) for ids in found]
    except OverflowError as error:
        raise_contract_error(tokenizer, method, f"expected ids from 0 on, got another number: {error}")
    highest = max((int(array.max()) for array in arrays), default=0)
    if highest >= tokenizer.vocab_size:
        raise_contract_error(
            tokenizer, method, f"expected ids and separator below vocab_size = {tokenizer.vocab_size}, got {highest}"
        )
    return arrays


def generated(task: SyntheticTask, seeds: torch.Tensor, window: int | None = None) -> SyntheticBatch:
    """Return one sequence for each seed [B], of T = `window` if that is known.

    Raises:
        ContractError: The batch has another form, or an id is not in the vocabulary.
    """
    batch = task.generate(seeds)
    if not isinstance(batch, SyntheticBatch):
        raise_contract_error(task, "generate", f"expected a SyntheticBatch, got a value of type {type(batch).__name__}")
    window = batch.tokens.shape[-1] - 1 if window is None else window
    shape = len(seeds), window
    check_shape(task, "generate", "tokens [B, T + 1]", batch.tokens, (len(seeds), window + 1), torch.int64)
    check_shape(task, "generate", "loss_mask [B, T]", batch.loss_mask, shape, torch.bool)
    check_shape(task, "generate", "evidence [B, T]", batch.evidence, shape, torch.int64)
    low, high = (int(bound) for bound in batch.tokens.aminmax())
    if not 0 <= low <= high < task.vocab_size:
        raise_contract_error(
            task, "generate", f"expected ids below vocab_size = {task.vocab_size}, got ids from {low} to {high}"
        )
    return batch
