"""Micro-batches of one rank, fetched ahead, with a position to resume from; and how a run opens its data."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcframe.data.split import check_share, empty_split
from mcframe.data.streaming import StreamedWindows, first_validation_windows
from mcframe.data.token_file import Progress, ShuffledWindows, token_file
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch, TextSource, Tokenizer


class WindowStream(Protocol):
    """An endless order of training sequences, numbered from 0, the same for any number of ranks."""

    window: int
    """T."""

    def take(self, indices: Sequence[int]) -> Tensor | SyntheticBatch:
        """Sequences with these growing global indices, all of this rank -> int64 [n, T + 1].

        Those of a task say besides which targets count.
        """

    def state(self) -> dict[str, Any]:
        """What this rank needs to go on behind the sequences taken; plain numbers."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a merged state. Raises UserError where it does not fit this stream."""

    def merge(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One state out of those of all ranks."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the CPU: tokens [B, T + 1] and the global index of each sequence [B], both int64.

    scored [B, T] bool says which targets count; None for all of them.
    """

    tokens: Tensor
    indices: Tensor
    loss_mask: Tensor | None = None


class Loader:
    """An endless iterator over one rank's micro-batches.

    batch_sequences  S, sequences of one optimizer step over all ranks
    micro_batch      B, sequences of one micro-batch of one rank
    prefetch         micro-batches made ahead, in one background thread
    pin              whether tokens are pinned, for copies to a GPU that do not block

    Micro-batch m of all ranks together covers the next B * world_size sequences, and a rank has those whose index is
    its own modulo the number of ranks: `accumulation` of them make a step. What goes wrong in the thread is raised
    where the batch is asked for. Raises UserError where S does not divide so.
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
        _check_division(batch_sequences, micro_batch, world_size, stream.window)
        self.accumulation = batch_sequences // (micro_batch * world_size)
        self._stream = stream
        self._span = micro_batch * world_size
        self._rank, self._world_size = rank, world_size
        self._prefetch, self._pin = prefetch, pin
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mcframe-loader")
        self._pending: deque[Future[tuple[Batch, dict[str, Any]]]] = deque()
        self._begin(0)

    @property
    def position(self) -> int:
        """The global index that follows what has been handed out."""
        position: int = self._state["position"]
        return position

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._thread.submit(self._make, self._asked))
            self._asked += self._span
        batch, state = self._pending[0].result()
        self._pending.popleft()  # only now: a failure stays in front, so that no batch is ever skipped
        self._state = state
        return batch

    def state(self) -> dict[str, Any]:
        """This rank's state behind the last batch handed out, whatever has been fetched ahead; plain numbers."""
        return self._state

    def merge(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What to save: one state out of those of all ranks. Raises ValueError where the ranks are not in step."""
        positions = {state["position"] for state in states}
        if len(positions) != 1:
            raise ValueError(f"ranks stand at different positions: {sorted(positions)}")
        return {"position": positions.pop(), "stream": self._stream.merge([state["stream"] for state in states])}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a merged state, made by any number of ranks. Raises UserError where it does not fit the data."""
        self._thread.submit(int).result()  # behind what is pending: from here on the stream is this thread's
        self._pending.clear()
        self._stream.restore(state["stream"])
        self._begin(state["position"])

    def close(self) -> None:
        """End the background thread, once it has finished what it is at. The loader gives no batch after this."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, position: int) -> None:
        self._asked = position
        self._state = {"position": position, "stream": self._stream.state()}

    def _make(self, position: int) -> tuple[Batch, dict[str, Any]]:
        """This rank's share of the sequences from `position` on, and the state behind them. In the thread."""
        end = position + self._span
        indices = range(position + (self._rank - position) % self._world_size, end, self._world_size)
        taken = self._stream.take(indices)
        tokens, loss_mask = (taken.tokens, taken.loss_mask) if isinstance(taken, SyntheticBatch) else (taken, None)
        parts = tokens, torch.tensor(indices, dtype=torch.int64), loss_mask
        batch = Batch(*(part.pin_memory() if self._pin and part is not None else part for part in parts))  # type: ignore[arg-type]
        return batch, {"position": end, "stream": self._stream.state()}


def micro_batch_for(sequences_per_rank: int, limit: int) -> int:
    """The largest micro-batch up to `limit` that divides `sequences_per_rank`; both at least 1."""
    return max(size for size in range(1, min(sequences_per_rank, limit) + 1) if sequences_per_rank % size == 0)


def _check_division(sequences: int, micro_batch: int, world_size: int, window: int) -> None:
    if sequences < 1 or sequences % world_size:
        below, above = sequences // world_size * world_size, (sequences // world_size + 1) * world_size
        valid = " or ".join(str(n * window) for n in (below, above) if n)
        raise UserError(
            f"run.batch_tokens makes {sequences} sequences of {window} tokens a step, which {world_size} rank(s) "
            "cannot share equally",
            binding="run.batch_tokens",
            remedy=f"set run.batch_tokens = {valid}, or change the number of ranks",
        )
    each = sequences // world_size
    if micro_batch < 1 or each % micro_batch:
        valid = ", ".join(str(size) for size in range(1, each + 1) if each % size == 0)
        raise UserError(
            f"each of {world_size} rank(s) has {each} sequences a step, which run.micro_batch = {micro_batch} does "
            "not divide",
            remedy=f"set run.micro_batch to one of {valid}, or change run.batch_tokens",
        )


def open_training_stream(
    source: TextSource,
    tokenizer: Tokenizer,
    window: int,
    seed: int,
    validation_fraction: float,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
) -> WindowStream:
    """The training sequences of T = `window`: shuffled from a token file, or streamed where the source says so.

    A streaming source shuffles itself, so `seed` is for the other. `progress` gets the tokens written where the
    token file has to be made first. Raises UserError where there is too little text.
    """
    if source.streaming:
        return StreamedWindows(source, tokenizer, window, validation_fraction, rank=rank, world_size=world_size)
    file = token_file(source, tokenizer, split="train", share=validation_fraction, progress=progress)
    return ShuffledWindows(file, window, seed)


def open_validation(
    source: TextSource,
    tokenizer: Tokenizer,
    window: int,
    share: float,
    count: int,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """`count` validation windows, or as many as there are -> int64 [n, T + 1].

    Spread evenly over the held-out documents, so that no single one decides the figure; of a streaming source the
    first ones. The same on every rank and in every run. Raises UserError where there is none.
    """
    check_share(share)
    if share == 0:
        raise empty_split("validation", share)
    if source.streaming:
        return first_validation_windows(source, tokenizer, window, share, count)
    file = token_file(source, tokenizer, split="validation", share=share, progress=progress)
    available = file.windows(window)
    if not available:
        raise UserError(
            f"{file.length:,} validation tokens were found, fewer than the {window + 1:,} of one sequence "
            f"(T = {window:,})",
            remedy="raise data.validation_fraction, or give the run more text",
        )
    return file.gather(validation_places(available, count), window)


def validation_places(available: int, count: int) -> NDArray[np.int64]:
    """Which of `available` held-out windows are taken when up to `count` are wanted: spread evenly."""
    return np.linspace(0, available - 1, min(count, available)).round().astype(np.int64)
