"""A corpus read while training, its windows dealt so that no number of ranks changes a sequence.

Documents are dealt to a fixed number of lanes: document d of epoch e belongs to lane `(d + e) % lanes`, whether it is
held out or not. Each lane packs its own training documents into windows, and global sequence i is window `i // lanes`
of lane `i % lanes`. A rank that takes every world-size-th sequence therefore needs only some lanes, provided that the
number of ranks shares a factor with that of lanes, and tokenises only their documents; otherwise it needs all.
Lanes rotate by epoch so that none runs dry, however few documents there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcframe.data import plugin_checks as returned
from mcframe.data.packing import Tokens, batched, gather_windows, separated, window_count
from mcframe.data.split import check_share, documents_of, empty_split, is_validation
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource, Tokenizer

LANES = 64
_READ_AHEAD = 64
"""Documents that are tokenised together."""


@dataclass(frozen=True)
class _Document:
    epoch: int
    index: int
    tokens: Tokens


@dataclass
class _Lane:
    """A lane's place: its next window begins `offset` tokens into document (epoch, document)."""

    epoch: int = 0
    document: int = 0
    offset: int = 0
    windows: int = 0
    """Windows passed, taken or not: the number of the next one."""
    ahead: deque[_Document] = field(default_factory=deque)
    """Read and not passed yet."""
    held: int = 0
    """Tokens in `ahead`, those before `offset` included."""

    def has_passed(self, epoch: int, document: int) -> bool:
        return (epoch, document) < (self.epoch, self.document)

    def append(self, document: _Document) -> None:
        self.ahead.append(document)
        self.held += len(document.tokens)

    def holds(self, window: int) -> bool:
        return self.held - self.offset > window

    def read(self, window: int) -> Tokens:
        """The next window + 1 tokens, which the lane must hold."""
        parts, tokens = [], 0
        for document in self.ahead:
            parts.append(document.tokens)
            tokens += len(document.tokens)
            if tokens > self.offset + window:
                break
        return np.concatenate(parts)[self.offset : self.offset + window + 1]

    def advance(self, window: int) -> None:
        """Pass one window, which the lane must hold; its last token stays, as the next one's first."""
        self.offset += window
        while self.offset >= len(self.ahead[0].tokens):
            passed = self.ahead.popleft()
            self.offset -= len(passed.tokens)
            self.held -= len(passed.tokens)
        self.epoch, self.document = self.ahead[0].epoch, self.ahead[0].index
        self.windows += 1


class StreamedWindows:
    """The training windows of a streaming source, for the ranks' sequences `i % world_size == rank`.

    `take` must be asked for growing indices of this rank. `state` has four numbers a lane and no tokens: to resume,
    the stream is read again from the document that the hindmost lane stands in.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: Tokenizer,
        window: int,
        share: float,
        *,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = LANES,
    ) -> None:
        check_share(share)
        self.window = window
        self._source, self._tokenizer, self._share = source, tokenizer, share
        self._lane_count = lanes
        common = gcd(lanes, world_size)
        self._lanes = {lane: _Lane() for lane in range(rank % common, lanes, common)}
        self._documents = self._read(0)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Sequences with these growing global indices -> int64 [n, T + 1].

        Raises ValueError for an index that has been passed or is another rank's, UserError from the source.
        """
        taken = np.empty((len(indices), self.window + 1), dtype=np.int64)
        for row, index in zip(taken, indices, strict=True):
            lane = self._lanes.get(index % self._lane_count)
            if lane is None or index // self._lane_count < lane.windows:
                raise ValueError(f"sequence {index} is another rank's, or has been passed")
            while lane.windows < index // self._lane_count:
                self._fill(lane)
                lane.advance(self.window)
            self._fill(lane)
            row[:] = lane.read(self.window)
            lane.advance(self.window)
        return torch.from_numpy(taken)

    def state(self) -> dict[str, Any]:
        """This rank's lanes, each as [lane, windows, epoch, document, offset]; plain numbers, as JSON has them."""
        lanes = [[i, lane.windows, lane.epoch, lane.document, lane.offset] for i, lane in self._lanes.items()]
        return {"lane_count": self._lane_count, "window": self.window, "lanes": lanes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the merged state of all ranks, of however many.

        Raises UserError where it was made with another T or number of lanes.
        """
        there, here = (state.get("lane_count"), state.get("window")), (self._lane_count, self.window)
        if there != here:
            raise UserError(
                f"the checkpoint's data stream has {there[0]} lanes and T = {there[1]}, "
                f"this run's has {here[0]} lanes and T = {here[1]}",
                remedy="restore the checkpoint's T, or start a new run",
            )
        places = {lane: place for lane, *place in state["lanes"]}
        for index in self._lanes:
            windows, epoch, document, offset = places[index]
            self._lanes[index] = _Lane(epoch, document, offset, windows)
        self._documents = self._read(min(lane.epoch for lane in self._lanes.values()))

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One state out of those of all ranks: of each lane, the place of the rank that is furthest along it.

        A lane's place is a function of the windows passed, so where ranks share a lane the furthest one's is right
        for all of them.
        """
        lanes: dict[int, list[int]] = {}
        for lane in (lane for state in states for lane in state["lanes"]):
            lanes[lane[0]] = max(lane, lanes.get(lane[0], lane))
        return {**states[0], "lanes": [lanes[index] for index in sorted(lanes)]}

    def _fill(self, lane: _Lane) -> None:
        """Read on until `lane` holds a window."""
        while not lane.holds(self.window):
            batch = list(islice(self._documents, _READ_AHEAD))
            if not batch:
                raise RuntimeError("the document stream has failed before and cannot go on")
            tokens = separated(self._tokenizer, [text for *_, text in batch])
            for (owner, epoch, index, _), ids in zip(batch, tokens, strict=True):
                owner.append(_Document(epoch, index, ids))

    def _read(self, first_epoch: int) -> Iterator[tuple[_Lane, int, int, str]]:
        """This rank's training documents from that epoch on without end, less those that their lane has passed."""
        for epoch in count(first_epoch):
            found = False
            for index, text in enumerate(returned.documents(self._source, epoch)):
                lane = self._lanes.get((index + epoch) % self._lane_count)
                if lane is None or lane.has_passed(epoch, index) or is_validation(text, self._share):
                    continue
                found = True
                yield lane, epoch, index, text
            # A small corpus may have nothing for these lanes in this epoch; it must have something for some lane.
            if (
                not found
                and next(documents_of(returned.documents(self._source, epoch), "train", self._share), None) is None
            ):
                raise empty_split("train", self._share)


def first_validation_windows(
    source: TextSource, tokenizer: Tokenizer, window: int, share: float, count: int, scan: int = 100_000
) -> Tensor:
    """The first `count` validation windows among the stream's first `scan` documents -> int64 [n <= count, T + 1].

    Raises UserError where there is none.
    """
    check_share(share)
    head = documents_of(islice(returned.documents(source), scan), "validation", share)
    parts: list[Tokens] = []
    length = 0
    for batch in batched(head, documents=16):
        parts += separated(tokenizer, batch)
        length = sum(map(len, parts))
        if window_count(length, window) >= count:
            break
    if not parts:
        raise empty_split("validation", share)
    available = min(count, window_count(length, window))
    if not available:
        raise UserError(
            f"the first {scan:,} documents hold {length:,} validation tokens, fewer than the {window + 1:,} of one "
            f"sequence (T = {window:,})",
            remedy="raise data.validation_fraction",
        )
    return gather_windows(np.concatenate(parts), range(available), window)
