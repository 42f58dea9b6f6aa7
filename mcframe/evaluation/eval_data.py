"""Held-out sequences with the document of every token, so that intervals can resample documents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcframe.data import synthetic_stream as generated
from mcframe.data.loader import open_validation, validation_indices
from mcframe.data.token_file import TokenFile, token_file
from mcframe.hookspecs import EvalData, SyntheticTask, TextSource, Tokenizer

_AT_ONCE = 1024
"""Windows read at a time while separators are counted."""


def from_text(source: TextSource, tokenizer: Tokenizer, window: int, share: float, count: int) -> EvalData:
    """Up to `count` windows of T = `window`, those that `open_validation` gives.

    A separator belongs to the document that it ends. Raises UserError where there is no held-out text.
    """
    tokens = open_validation(source, tokenizer, window, share, count)
    separator = tokens[:, :-1] == tokenizer.separator
    if source.streaming:  # neighbours in one stream: each window goes on where the one before ended
        before = separator.sum(dim=1).cumsum(0) - separator.sum(dim=1)
    else:
        file = token_file(source, tokenizer, split="validation", fraction=share)
        counts = np.concatenate([[0], *_separators(file, window, tokenizer.separator)])
        before = torch.from_numpy(counts.cumsum()[validation_indices(file.windows(window), count)])
    inside = torch.cat((torch.zeros_like(separator[:, :1], dtype=torch.long), separator.long().cumsum(dim=1)), dim=1)
    loss_mask = torch.ones_like(separator)
    return EvalData(tokens, before[:, None] + inside, loss_mask)


def from_task(task: SyntheticTask, count: int) -> EvalData:
    """`count` generated sequences; each is a document of its own."""
    batch = generated.held_out(task, count)
    documents = torch.arange(count)[:, None].expand_as(batch.tokens)
    return EvalData(batch.tokens, documents, batch.loss_mask, batch.evidence, task.chance)


def _separators(file: TokenFile, window: int, separator: int) -> Iterator[NDArray[np.int64]]:
    """How many separators each window of the stream holds, its last token, which the next one begins with, left out."""
    total = file.windows(window)
    for first in range(0, total, _AT_ONCE):
        tokens: Tensor = file.gather(range(first, min(first + _AT_ONCE, total)), window)
        yield (tokens[:, :-1] == separator).sum(dim=1).numpy()
