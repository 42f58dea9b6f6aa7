"""A corpus read while training, its windows dealt so that the number of ranks does not change a sequence.

Documents are dealt to a fixed number of lanes: document d of epoch e belongs to lane `(d + e) % lanes`, whether it is
held out or not. Each lane packs its own training documents into windows, and global sequence i is window `i // lanes`
of lane `i % lanes`. A rank that takes every world-size-th sequence therefore needs only some lanes and tokenises only
their documents, provided that the number of ranks and that of lanes have a common factor; otherwise it needs all lanes.
Lanes rotate by epoch, so that none runs dry in a corpus of few documents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcframe.data import plugin_checks
from mcframe.data.packing import Counted, Tokens, batched, gather_windows, separated, window_count
from mcframe.data.positions import positioned
from mcframe.data.split import check_fraction, documents_of, empty_split, is_validation
from mcframe.data.window_stream import check_same_stream
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource, Tokenizer

LANES = 64
_READ_AHEAD = 64
"""Documents that are tokenised together."""
_MARKED = 64
"""Documents between two positions in the source that are kept."""


@dataclass(frozen=True)
class _Document:
    epoch: int
    index: int
    tokens: Tokens


class _Mark(NamedTuple):
    """A position in the source: the epoch, the documents of it that are passed, the source's own position."""

    epoch: int
    passed: int
    own: Any


@dataclass
class _Lane:
    """Position of a lane: its next window begins `offset` tokens into document (epoch, document)."""

    epoch: int = 0
    document: int = 0
    offset: int = 0
    windows: int = 0
    """Windows passed, whether taken or not: the number of the next one."""
    ahead: deque[_Document] = field(default_factory=deque)
    """Documents that are read and not passed yet."""
    held: int = 0
    """Tokens in `ahead`, those before `offset` included."""

    def append(self, document: _Document) -> None:
        self.ahead.append(document)
        self.held += len(document.tokens)

    def holds(self, window: int) -> bool:
        return self.held - self.offset > window

    def read(self, window: int) -> Tokens:
        """Return the next window + 1 tokens, which the lane must hold."""
        parts, tokens = [], 0
        for document in self.ahead:
            parts.append(document.tokens)
            tokens += len(document.tokens)
            if tokens > self.offset + window:
                break
        return np.concatenate(parts)[self.offset : self.offset + window + 1]

    def advance(self, window: int) -> None:
        """Pass one window, which the lane must hold; its last token stays as the first one of the next window."""
        self.offset += window
        while self.offset >= len(self.ahead[0].tokens):
            passed = self.ahead.popleft()
            self.offset -= len(passed.tokens)
            self.held -= len(passed.tokens)
        self.epoch, self.document = self.ahead[0].epoch, self.ahead[0].index
        self.windows += 1


class StreamedWindows:
    """The training windows of a streaming source, for this rank's sequences `i % world_size == rank`.

    `state` has four numbers a lane, a position in the source and no tokens. To resume, the source is read from that
    position, which is at most `_MARKED` documents before the document of the hindmost lane.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: Tokenizer,
        window: int,
        fraction: float,
        *,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = LANES,
    ) -> None:
        check_fraction(fraction)
        self.window = window
        self._source, self._tokenizer, self._fraction = source, tokenizer, fraction
        self._shape = {"lane_count": lanes, "window": window}
        common = gcd(lanes, world_size)
        self._lanes = {lane: _Lane() for lane in range(rank % common, lanes, common)}
        self._identity = source.identity
        self._start(_Mark(0, 0, None))

    def take(self, indices: Sequence[int]) -> Tensor:
        """Return the sequences with these growing global indices -> int64 [n, T + 1], for `unpacked`.

        Raises:
            ValueError: An index has been passed or belongs to another rank.
            UserError: The source cannot be read.
        """
        taken = np.empty((len(indices), self.window + 1), dtype=np.int64)
        for row, index in zip(taken, indices, strict=True):
            number, lane_index = divmod(index, self._shape["lane_count"])
            lane = self._lanes.get(lane_index)
            if lane is None or number < lane.windows:
                raise ValueError(f"sequence {index} belongs to another rank or has been passed")
            while lane.windows < number:
                self._fill(lane)
                lane.advance(self.window)
            self._fill(lane)
            row[:] = lane.read(self.window)
            lane.advance(self.window)
        return torch.from_numpy(taken)

    def state(self) -> dict[str, Any]:
        """Return this rank's lanes and the position in the source, in values of JSON.

        A lane is [lane, windows, epoch, document, offset], the position [epoch, documents passed, source's own].
        """
        lanes = [[i, lane.windows, lane.epoch, lane.document, lane.offset] for i, lane in self._lanes.items()]
        hindmost = min((lane.epoch, lane.document) for lane in self._lanes.values())
        while len(self._marks) > 1 and self._marks[1][:2] <= hindmost:
            self._marks.popleft()
        return {**self._shape, "lanes": lanes, "source": list(self._marks[0])}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the merged state of any number of ranks.

        Raises:
            UserError: The state has another T or number of lanes.
        """
        check_same_stream(self._shape, {name: state.get(name) for name in self._shape})
        positions = {lane: position for lane, *position in state["lanes"]}
        for index in self._lanes:
            windows, epoch, document, offset = positions[index]
            self._lanes[index] = _Lane(epoch, document, offset, windows)
        hindmost = min((lane.epoch, lane.document) for lane in self._lanes.values())
        self._start(_Mark(*state.get("source", (*hindmost, None))))  # older checkpoints have no position

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one state made from those of all ranks: of each lane, the position furthest along it.

        A lane's position is a function of the windows passed, so that the furthest one is valid for every rank. So is
        the earliest position in the source: it is not after any lane.
        """
        lanes: dict[int, list[int]] = {}
        for lane in (lane for state in states for lane in state["lanes"]):
            lanes[lane[0]] = max(lane, lanes.get(lane[0], lane))
        merged = {**states[0], "lanes": [lanes[index] for index in sorted(lanes)]}
        if all("source" in state for state in states):  # older checkpoints have no position
            merged["source"] = min((state["source"] for state in states), key=lambda position: position[:2])
        return merged

    def _start(self, mark: _Mark) -> None:
        """Read from a position on."""
        self._marks = deque([mark])
        self._documents = self._read(mark)

    def _fill(self, lane: _Lane) -> None:
        """Read documents until `lane` holds a window."""
        while not lane.holds(self.window):
            batch = list(islice(self._documents, _READ_AHEAD))
            if not batch:
                raise RuntimeError("the document stream has failed before and cannot continue")
            tokens = separated(self._tokenizer, [text for *_, text in batch], self._source.chats)
            for (owner, epoch, index, _), ids in zip(batch, tokens, strict=True):
                owner.append(_Document(epoch, index, ids))

    def _read(self, mark: _Mark) -> Iterator[tuple[_Lane, int, int, str]]:
        """Yield this rank's training documents from there on without end, except those that their lane has passed.

        Yields:
            The lane, the epoch, the index of the document in it, and the text.
        """
        for epoch in count(mark.epoch):
            if epoch > mark.epoch and self._source.identity != self._identity:
                raise UserError(
                    f"the text has changed since the run started, at the start of epoch {epoch:,}: its documents would "
                    "be others than those that the position counts",
                    remedy="Restore the text and repeat the command, or start a new run with --resume never.",
                )
            found = False
            passed, own = (mark.passed, mark.own) if epoch == mark.epoch else (0, None)
            for text, after in positioned(self._source, epoch, [passed, own]):
                index = passed
                if index % _MARKED == 0 and (epoch, index) > self._marks[-1][:2]:
                    self._marks.append(_Mark(epoch, index, own))
                passed, own = after
                lane = self._lanes.get((index + epoch) % self._shape["lane_count"])
                if lane is None or (epoch, index) < (lane.epoch, lane.document) or is_validation(text, self._fraction):
                    continue
                found = True
                yield lane, epoch, index, text
            if not found:  # in a small corpus, the documents of this epoch may all belong to other lanes
                every = Counted(plugin_checks.documents(self._source, epoch))
                if next(documents_of(every, "train", self._fraction), None) is None:
                    raise empty_split("train", self._fraction, every.count)


def first_validation_windows(
    source: TextSource, tokenizer: Tokenizer, window: int, fraction: float, count: int, scan: int = 100_000
) -> Tensor:
    """Return the first `count` validation windows among the stream's first `scan` documents -> int64 [n, T + 1].

    They are for `unpacked`.

    Raises:
        UserError: These documents do not fill one window.
    """
    check_fraction(fraction)
    head = Counted(islice(plugin_checks.documents(source), scan))
    parts: list[Tokens] = []
    length = 0
    for batch in batched(documents_of(head, "validation", fraction), documents=16):
        parts += separated(tokenizer, batch, source.chats)
        length = sum(map(len, parts))
        if window_count(length, window) >= count:
            break
    if not parts:
        raise empty_split("validation", fraction, head.count)
    available = min(count, window_count(length, window))
    if not available:
        raise UserError(
            f"validation split: expected at least {window + 1:,} tokens for one sequence of T = {window:,}, got "
            f"{length:,} in the first {scan:,} documents",
            remedy="Raise data.validation_fraction.",
        )
    return gather_windows(np.concatenate(parts), range(available), window)
