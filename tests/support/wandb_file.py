"""Reader of the `.wandb` files that an offline run writes."""

import json
import time

import pytest
from wandb.proto import wandb_internal_pb2

BLOCK = 32768
FILE_HEADER = 7
RECORD_HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def finished_records(path):
    """Return all records of a finished run, which wandb's own process writes shortly after `finish` returns."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = list(records(path.read_bytes()))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.05)
    return pytest.fail(f"{path} was never completed")


def records(data):
    """Yield the records of a `.wandb` file: LevelDB's log format after a header of seven bytes, protobuf inside."""
    at, part = FILE_HEADER, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if BLOCK - at % BLOCK < RECORD_HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + RECORD_HEADER + length > len(data):
            return  # being written
        body = data[at + RECORD_HEADER : at + RECORD_HEADER + length]
        at += RECORD_HEADER + length
        part = body if kind in (FULL, FIRST) else part + body
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record


def offline_files(run_dir):
    """Return the files of the offline runs in a run directory."""
    return sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))


def history(found):
    """Return a row of metrics, by name, for each record of the history."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
