"""The `.wandb` files of offline runs: what they hold, and cutting them where a run resumes.

A file is LevelDB's log format after a header of seven bytes: blocks of 32 KiB hold records in one or more parts, each
after a header of checksum, length and kind. A record is a protobuf message.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcframe.files import replaced

_BLOCK, _FILE_HEADER, _PART_HEADER = 32768, 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def records(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield start, end and message of every complete record of a file's content."""
    # Imported late: wandb takes seconds to import.
    from wandb.proto import wandb_internal_pb2

    at, start, part = _FILE_HEADER, _FILE_HEADER, b""
    while at + _PART_HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _PART_HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        body, begins = data[at + _PART_HEADER : at + _PART_HEADER + length], kind in (_FULL, _FIRST)
        if len(body) < length or not _FULL <= kind <= _LAST:
            return  # cut by a crash
        start, part = (at, body) if begins else (start, part + body)
        at += _PART_HEADER + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            try:
                record.ParseFromString(part)
            except Exception:  # noqa: BLE001 - protobuf's DecodeError, of a part that a crash has damaged
                return
            yield start, at, record


def cut_after(path: Path, step: int) -> set[int]:
    """Remove what a file has after an optimizer step, and return the steps of the rows that remain.

    A file that was not closed is replaced by a copy, since its writer may have outlived the run.
    """
    data = path.read_bytes()
    steps, end, closed = set[int](), min(len(data), _FILE_HEADER), False
    for start, after, record in records(data):
        if record.WhichOneof("record_type") == "history":
            found = _step(record.history)
            if found > step:
                end, closed = start, False
                break
            steps.add(found)
        closed = record.WhichOneof("record_type") == "exit"
        end = after
    if not closed:
        with replaced(path) as partial:
            partial.write_bytes(data[:end])
    return steps


def _step(history: Any) -> int:
    for item in history.item:
        if (item.key or "/".join(item.nested_key)) == "_step":
            return int(item.value_json)
    return int(history.step.num)
