"""Held-out sequences with the document of every token, so that intervals can resample documents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from mcframe.data import synthetic_stream
from mcframe.data.loader import open_validation, validation_indices
from mcframe.data.packing import unpacked
from mcframe.data.token_file import TokenFile, token_file
from mcframe.hookspecs import EvalData, SyntheticTask, TextSource, Tokenizer

_AT_ONCE = 1024
"""Number of windows in memory at a time while separators are counted."""


def from_text(source: TextSource, tokenizer: Tokenizer, window: int, fraction: float, count: int) -> EvalData:
    """Return the first `count` windows of validation, or as many as there are.

    A separator belongs to the document that it ends.

    Args:
        source: Source of the documents.
        tokenizer: Tokenizer of the model.
        window: T, the targets of a window.
        fraction: Fraction of the documents that is held out.
        count: Number of windows.

    Raises:
        UserError: No document is held out.
    """
    tokens, answers = open_validation(source, tokenizer, window, fraction, count)
    separator = tokens[:, :-1] == tokenizer.separator
    if source.streaming:  # each window begins where the previous one ended
        before = separator.sum(dim=1).cumsum(0) - separator.sum(dim=1)
    else:
        file = token_file(source, tokenizer, split="validation", fraction=fraction)
        counts = np.concatenate([[0], *_separators(file, window, tokenizer.separator)])
        before = torch.from_numpy(counts.cumsum()[validation_indices(file.windows(window), count)])
    inside = torch.cat((torch.zeros_like(separator[:, :1], dtype=torch.long), separator.long().cumsum(dim=1)), dim=1)
    loss_mask = torch.ones_like(separator) if answers is None else answers
    return EvalData(tokens, before[:, None] + inside, loss_mask)


def from_task(task: SyntheticTask, count: int) -> EvalData:
    """Return `count` generated sequences, each of which is a document."""
    batch = synthetic_stream.held_out(task, count)
    documents = torch.arange(count)[:, None].expand_as(batch.tokens)
    return EvalData(batch.tokens, documents, batch.loss_mask, batch.evidence, task.chance)


def _separators(file: TokenFile, window: int, separator: int) -> Iterator[NDArray[np.int64]]:
    """Yield the number of separators in each window, without its last token, with which the next window begins."""
    total = file.windows(window)
    for first in range(0, total, _AT_ONCE):
        tokens, _ = unpacked(file.gather(range(first, min(first + _AT_ONCE, total)), window))
        yield (tokens[:, :-1] == separator).sum(dim=1).numpy()
