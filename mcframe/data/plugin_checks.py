"""What text sources, tokenizers and tasks return, looked at before it is used: a stranger may have written them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcframe.hookspecs import SyntheticBatch, SyntheticTask, TextSource, Tokenizer
from mcframe.registry.checks import check_shape, raise_contract_error

Ids = np.unsignedinteger[Any]


def documents(source: TextSource, epoch: int = 0) -> Iterator[str]:
    """The source's documents. Raises Breach where one is no text."""
    for document in source.documents(epoch):
        if not isinstance(document, str):
            raise_contract_error(
                source, "documents", f"yielded a value of type {type(document).__name__}; asked are texts (str)"
            )
        yield document


def encoded(tokenizer: Tokenizer, texts: Sequence[str], kind: np.dtype[Ids]) -> list[NDArray[Ids]]:
    """The ids of each text with the separator behind them.

    Raises Breach where there are not as many lists as texts, or an id is no entry of the vocabulary.
    """
    found = tokenizer.encode_batch(texts)
    if len(found) != len(texts):
        raise_contract_error(tokenizer, "encode_batch", f"returned {len(found)} lists of ids for {len(texts)} texts")
    try:
        arrays = [np.array([*ids, tokenizer.separator], dtype=kind) for ids in found]
    except OverflowError as error:
        raise_contract_error(tokenizer, "encode_batch", f"returned an id that is none: {error}")
    highest = max((int(array.max()) for array in arrays), default=0)
    if highest >= tokenizer.vocab_size:
        raise_contract_error(
            tokenizer, "encode_batch",
            f"returned the id {highest}; asked are ids, and a separator, below vocab_size = {tokenizer.vocab_size}",
        )  # fmt: skip
    return arrays


def generated(task: SyntheticTask, seeds: torch.Tensor, window: int | None = None) -> SyntheticBatch:
    """Sequences, one a seed [B], of T = `window` where that is known.

    Raises Breach where they are not of that form, or an id is too large.
    """
    batch = task.generate(seeds)
    if not isinstance(batch, SyntheticBatch):
        raise_contract_error(
            task, "generate", f"returned a value of type {type(batch).__name__}; asked is a SyntheticBatch"
        )
    window = batch.tokens.shape[-1] - 1 if window is None else window
    shape = len(seeds), window
    check_shape(task, "generate", "tokens [B, T + 1]", batch.tokens, (len(seeds), window + 1), torch.int64)
    check_shape(task, "generate", "loss_mask [B, T]", batch.loss_mask, shape, torch.bool)
    check_shape(task, "generate", "evidence [B, T]", batch.evidence, shape, torch.int64)
    low, high = (int(bound) for bound in batch.tokens.aminmax())
    if not 0 <= low <= high < task.vocab_size:
        raise_contract_error(
            task, "generate", f"returned ids {low} to {high}; asked are ids below vocab_size = {task.vocab_size}"
        )
    return batch
