"""TensorBoard's event files as series, for runs that left no metrics.jsonl; and the texts in them.

Records are found here and parsed by TensorBoard's own definitions. Its readers compute a checksum of every byte in
Python and parse every event, which takes hours where a run has logged each of millions of steps.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mcframe.review.series import Series

_PATTERN = "*tfevents*"
_TOKENS, _PER_STEP = "train/tokens", "train/tokens_per_step"
_TEXT = "/text_summary"
_HEADER, _FOOTER = 12, 4
_FARTHEST = 128
"""Bytes from a record's begin to the name in it: time, step and lengths, at most a few dozen."""


@dataclass
class Scalars:
    """What the event files of a folder hold; the fields are those of `Record`."""

    series: dict[str, Series] = field(default_factory=dict)
    x: str = "tokens"
    values: int = 0
    steps: tuple[int, int] = (0, 0)
    tokens: tuple[int, int] = (0, 0)
    times: tuple[float, float] = (0.0, 0.0)
    notes: list[str] = field(default_factory=list)


def event_files(directory: Path) -> list[Path]:
    """Event files in a folder or its folder `tensorboard`, in the order in which they were begun."""
    found = [*directory.glob(_PATTERN), *(directory / "tensorboard").glob(_PATTERN)]
    return sorted(found, key=lambda file: file.name)


def read_scalars(directory: Path, lowest: float, highest: float) -> Scalars:
    """Scalars between two optimizer steps, streamed, under their names.

    TensorBoard has one x axis and does not say what it counts. Where the log holds train/tokens, tokens are looked
    up in it, so an axis of steps and one of tokens come to the same; else train/tokens_per_step, else steps alone.
    """
    clock = _clock(directory)
    found = Scalars(x="tokens" if clock else "steps")
    for at, wall, name, value in _scalars(directory):
        tokens, step = _place(at, clock)
        if not lowest <= step <= highest:
            continue
        if not found.values:
            found.steps, found.tokens, found.times = (step, step), (tokens, tokens), (wall, wall)
        found.values += 1
        found.steps = (min(found.steps[0], step), max(found.steps[1], step))
        found.tokens = (min(found.tokens[0], tokens), max(found.tokens[1], tokens))
        found.times = (found.times[0], max(found.times[1], wall))
        found.series.setdefault(name, Series()).add(tokens, step, value)
    if not clock:
        found.notes.append("The log says nothing of tokens; its x axis is taken as optimizer steps.")
    return found


def _clock(directory: Path) -> dict[str, Series]:
    clock: dict[str, Series] = {}
    for at, _, name, value in _scalars(directory, _TOKENS, _PER_STEP):
        if name in (_TOKENS, _PER_STEP):
            clock.setdefault(name, Series()).add(at, at, value)
    return clock


def _place(at: int, clock: dict[str, Series]) -> tuple[int, int]:
    """(tokens, step) of a place on TensorBoard's axis."""
    per_step = clock[_PER_STEP].last if _PER_STEP in clock else 0.0
    if _TOKENS not in clock:
        return (round(at * per_step) if per_step else at), at
    counted = clock[_TOKENS]
    tokens = counted.last * at / counted.tokens[-1] if counted.count == 1 and counted.tokens[-1] else None
    if tokens is None:
        where, means = counted.tokens, counted.means
        tokens = float(np.interp(at, where, means)) if at >= where[0] else float(means[0] * at / max(where[0], 1.0))
    return round(tokens), (round(tokens / per_step) if per_step else at)


def read_texts(directory: Path, name: str) -> list[tuple[int, str]]:
    """(x, text) of the first and the last text of this name. Only the name is looked for, which is fast."""
    found = [places for file in event_files(directory) if (places := _ends(file, f"{name}{_TEXT}".encode()))]
    if not found:
        return []
    first, last = found[0][0], found[-1][1]
    return [_spoken(event, name + _TEXT) for event in ([first] if first == last else [first, last])]


def _ends(file: Path, tag: bytes) -> tuple[Any, Any] | None:
    """The first and the last whole event that has this tag."""
    with file.open("rb") as opened:
        if not file.stat().st_size:
            return None
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            first = _nearest(content, tag, content.find(tag), content.find)
            last = _nearest(content, tag, content.rfind(tag), lambda tag, at: content.rfind(tag, 0, at + len(tag) - 2))
    return None if first is None or last is None else (first, last)


def _nearest(content: mmap.mmap, tag: bytes, at: int, next_tokens: Callable[[bytes, int], int]) -> Any:
    """The event around a place where the tag stands; where none is whole there, around the next such place."""
    while at >= 0:
        for begin in range(at - _HEADER - 2, max(-1, at - _FARTHEST), -1):
            data = _record(content, begin)
            if data is None or begin + _HEADER + len(data) <= at:
                continue
            event = _event(data)
            if any(value.tag.encode() == tag for value in event.summary.value):  # else another text speaks of it
                return event
        at = next_tokens(tag, at + 1)
    return None


def _spoken(event: Any, tag: str) -> tuple[int, str]:
    (value,) = (value for value in event.summary.value if value.tag == tag)
    text = value.tensor.string_val[0].decode("utf-8", "replace")
    return event.step, "\n".join(line.removeprefix("    ") for line in text.splitlines())


def _scalars(directory: Path, *tags: str) -> Iterator[tuple[int, float, str, float]]:
    """(x, wall time, name, value) of every scalar, at least of those of these names."""
    for event in _events(directory, *tags):
        for value in event.summary.value:
            plugin = value.metadata.plugin_data.plugin_name
            if value.HasField("tensor") and plugin in ("", "scalars") and not value.tensor.string_val:
                number = _number(value.tensor)
                if number is not None:
                    yield event.step, event.wall_time, value.tag, number
            elif value.HasField("simple_value"):
                yield event.step, event.wall_time, value.tag, value.simple_value


def _number(tensor: Any) -> float | None:
    from tensorboard.util.tensor_util import make_ndarray

    array = make_ndarray(tensor)
    return float(array) if array.size == 1 and array.dtype.kind in "fiu" else None


def _events(directory: Path, *tags: str) -> Iterator[Any]:
    """Whole events in order, up to the first that a crash has torn; of those that hold one of these names, if any."""
    wanted = [tag.encode() for tag in tags]
    for file in event_files(directory):
        if not file.stat().st_size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            begin = 0
            while (data := _record(content, begin)) is not None:
                begin += _HEADER + len(data) + _FOOTER
                if not wanted or any(tag in data for tag in wanted):
                    yield _event(data)


def _record(content: mmap.mmap, begin: int) -> bytes | None:
    """The data of the record that begins here: its length, a checksum of that, data, a checksum. None: no whole one."""
    header = content[begin : begin + _HEADER]
    if len(header) < _HEADER:
        return None
    length, checksum = struct.unpack("<QI", header)
    end = begin + _HEADER + length
    if end + _FOOTER > len(content) or _checksum(header[:8]) != checksum:
        return None
    return content[begin + _HEADER : end]


@lru_cache(maxsize=4096)
def _checksum(length: bytes) -> int:
    """Of a length as it is written; lengths repeat."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return int(masked_crc32c(length))


def _event(data: bytes) -> Any:
    # Imported late: it takes a second.
    from tensorboard.compat.proto.event_pb2 import Event

    return Event.FromString(data)
