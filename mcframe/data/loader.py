"""Micro-batches of one rank, fetched ahead, with a position to resume from; opens the data of a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcframe.data.packing import unpacked
from mcframe.data.split import check_fraction, empty_split
from mcframe.data.streaming import StreamedWindows, first_validation_windows
from mcframe.data.token_file import ShuffledWindows, token_file
from mcframe.data.window_stream import WindowStream
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch, TextSource, Tokenizer


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the CPU.

    Attributes:
        tokens: [B, T + 1] int64.
        indices: [B] int64, the global index of each sequence.
        loss_mask: [B, T] bool, the targets that count; None for all targets.
    """

    tokens: Tensor
    indices: Tensor
    loss_mask: Tensor | None = None


class Loader:
    """An endless iterator over one rank's micro-batches.

    Micro-batch m of all ranks covers the next B * world_size sequences. A rank takes those whose index modulo the
    number of ranks is its own; `accumulation` micro-batches are an optimizer step. An exception in the background
    thread is raised by `next` for the batch that failed.

    Args:
        stream: the training sequences.
        batch_sequences: sequences of an optimizer step, all ranks.
        micro_batch: B, sequences of a micro-batch of one rank.
        rank: this rank.
        world_size: number of ranks.
        prefetch: micro-batches to make ahead, in one background thread.
        pin: whether to pin the tensors, for copies to a GPU that do not block.

    Raises:
        ValueError: `batch_sequences` is not a multiple of B * world_size.
    """

    def __init__(
        self,
        stream: WindowStream,
        *,
        batch_sequences: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        pin: bool = False,
    ) -> None:
        self._span = micro_batch * world_size
        self.accumulation, rest = divmod(batch_sequences, self._span)
        if rest or not self.accumulation:
            raise ValueError(f"batch_sequences: expected a multiple of {self._span}, got {batch_sequences}")
        self._stream = stream
        self._rank, self._world_size = rank, world_size
        self._prefetch, self._pin = prefetch, pin
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mcframe-loader")
        self._pending: deque[Future[tuple[Batch, dict[str, Any]]]] = deque()
        self._start(0)

    @property
    def position(self) -> int:
        """The global index after the sequences that have been returned."""
        position: int = self._state["position"]
        return position

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._thread.submit(self._make, self._submitted))
            self._submitted += self._span
        batch, state = self._pending[0].result()
        self._pending.popleft()  # only now: a failed batch stays in front, so that no batch is ever skipped
        self._state = state
        return batch

    def state(self) -> dict[str, Any]:
        """Return this rank's state after the last batch returned, not the last one fetched, in values of JSON."""
        return self._state

    def merge(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one state for a checkpoint, made from those of all ranks.

        Raises:
            ValueError: The ranks have different positions.
        """
        positions = {state["position"] for state in states}
        if len(positions) != 1:
            raise ValueError(f"position: expected the same on all ranks, got {sorted(positions)}")
        return {"position": positions.pop(), "stream": self._stream.merge([state["stream"] for state in states])}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a merged state, made by any number of ranks.

        Raises:
            UserError: The state belongs to other data.
        """
        self._thread.submit(int).result()  # wait for the pending batches: the thread no longer uses the stream
        self._pending.clear()
        self._stream.restore(state["stream"])
        self._start(state["position"])

    def close(self) -> None:
        """End the background thread after the batch that it is making. No batch can be taken after this."""
        self._thread.shutdown(cancel_futures=True)

    def _start(self, position: int) -> None:
        self._submitted = position
        self._state = {"position": position, "stream": self._stream.state()}

    def _make(self, position: int) -> tuple[Batch, dict[str, Any]]:
        """Return this rank's part of the sequences from `position` on, and the state after them. Runs in the thread."""
        end = position + self._span
        indices = range(position + (self._rank - position) % self._world_size, end, self._world_size)
        taken = self._stream.take(indices)
        tokens, loss_mask = (taken.tokens, taken.loss_mask) if isinstance(taken, SyntheticBatch) else unpacked(taken)
        parts = tokens, torch.tensor(indices, dtype=torch.int64), loss_mask
        batch = Batch(*(part.pin_memory() if self._pin and part is not None else part for part in parts))  # type: ignore[arg-type]
        return batch, {"position": end, "stream": self._stream.state()}


def open_training_stream(
    source: TextSource,
    tokenizer: Tokenizer,
    window: int,
    seed: int,
    validation_fraction: float,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> WindowStream:
    """Open the training sequences of T = `window`: shuffled from a token file, or streamed from a streaming source.

    Args:
        source: where the documents come from.
        tokenizer: text to ids.
        window: T.
        seed: determines the order of a token file; a streaming source shuffles itself.
        validation_fraction: fraction of documents that are held out.
        rank: this rank.
        world_size: number of ranks.

    Raises:
        UserError: The source has too little text.
    """
    if source.streaming:
        return StreamedWindows(source, tokenizer, window, validation_fraction, rank=rank, world_size=world_size)
    return ShuffledWindows(token_file(source, tokenizer, split="train", fraction=validation_fraction), window, seed)


def open_validation(
    source: TextSource, tokenizer: Tokenizer, window: int, fraction: float, count: int
) -> tuple[Tensor, Tensor | None]:
    """Return up to `count` validation windows -> int64 [n, T + 1], the same on every rank and in every run.

    Their loss mask [n, T] is None if every target is scored. They are spread evenly over the held-out documents, so
    that no single document decides the result. Of a streaming source they are the first ones.

    Raises:
        UserError: The held-out documents do not fill one window, or no answer is in the windows.
    """
    check_fraction(fraction)
    if fraction == 0:
        raise empty_split("validation", fraction, 0)
    if source.streaming:
        return _with_answers(first_validation_windows(source, tokenizer, window, fraction, count))
    file = token_file(source, tokenizer, split="validation", fraction=fraction)
    available = file.windows(window)
    if not available:
        raise UserError(
            f"validation split: expected at least {window + 1:,} tokens for one sequence of T = {window:,}, got "
            f"{file.length:,}",
            remedy="Raise data.validation_fraction, or train on more text.",
        )
    return _with_answers(file.gather(validation_indices(available, count), window))


def _with_answers(windows: Tensor) -> tuple[Tensor, Tensor | None]:
    tokens, loss_mask = unpacked(windows)
    if loss_mask is not None and not loss_mask.any():
        raise UserError(
            f"validation split: expected answers, got {len(tokens):,} sequences of T = {tokens.shape[1] - 1:,} without",
            remedy="Raise validation.windows, data.validation_fraction or context.window.",
        )
    return tokens, loss_mask


def validation_indices(available: int, count: int) -> NDArray[np.int64]:
    """Return the indices of up to `count` of `available` held-out windows, spread evenly."""
    return np.linspace(0, available - 1, min(count, available)).round().astype(np.int64)
