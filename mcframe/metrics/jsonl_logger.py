"""Logger of metrics as JSON lines: the complete record of a run."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcframe.errors import Location, UserError
from mcframe.files import replaced, writing
from mcframe.hookspecs import MetricLogger, RunStart

METRICS, TEXTS = "metrics.jsonl", "texts.jsonl"
_KEYS = ("tokens", "step", "time")
SUPERSEDED, SUPERSEDED_TEXTS = "metrics.superseded.jsonl", "texts.superseded.jsonl"


class JsonlLogger(MetricLogger):
    """Appends a line `{"tokens": .., "step": .., "time": .., <metrics>}` to `metrics.jsonl` and flushes it.

    `time` is in seconds since the epoch. A value that is not finite is written as null, because JSON has no NaN. At the
    start, lines after the point of resumption (all lines of an earlier run) move to `metrics.superseded.jsonl`. Texts
    are lines `{"tokens": .., "name": .., "text": ..}` of `texts.jsonl`, likewise.
    """

    def __init__(self, run: RunStart) -> None:
        self.path = run.directory / METRICS
        self._texts = run.directory / TEXTS
        supersede(self.path, run.directory / SUPERSEDED, run.resume_tokens)
        supersede(self._texts, run.directory / SUPERSEDED_TEXTS, run.resume_tokens)
        self._file = self.path.open("a", encoding="utf-8")

    @property
    def location(self) -> tuple[str, str]:
        """A label and the file."""
        return "metrics", str(self.path)

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"tokens": tokens, "step": step, "time": round(time.time(), 3), **finite}
        with writing(self.path):
            if os.fstat(self._file.fileno()).st_nlink == 0:  # such a file takes lines that are lost
                raise FileNotFoundError(errno.ENOENT, "the file has been deleted", str(self.path))
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def text(self, tokens: int, name: str, text: str) -> None:
        """Append one text."""
        with writing(self._texts), self._texts.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"tokens": tokens, "name": name, "text": text}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):
            self._file.close()


def parse(line: bytes) -> dict[str, Any] | None:
    """Return a line of a run's metrics or figures; None for one that a crash has truncated or another tool wrote."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if isinstance(entry, dict) and _is_count(entry.get("tokens")) and _is_count(entry.get("step")):
        return entry
    return None


def rows_from(path: Path, tokens: int) -> list[dict[str, Any]]:
    """Return the complete lines of `metrics.jsonl` or `texts.jsonl` from a token count on, if the file exists."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if tokens <= _tokens(line) < math.inf]


def check_own(path: Path) -> None:
    """Raise UserError if a file has complete lines of which the first was not written by mcframe."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            with suppress(ValueError):
                found = json.loads(line)
                got = ", ".join(list(found)[:6]) if isinstance(found, dict) else repr(found)[:60]
                if parse(line) is None:
                    raise UserError(
                        f"expected an object with the numbers tokens and step, got {got}",
                        remedy="Pass a run directory of mcframe. Files of other tools are not read.",
                        location=Location(path, number),
                    )
                return


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a file of metrics."""
    if path.exists():
        with path.open("rb") as file:
            yield from filter(None, map(parse, file))


def step_at(path: Path, tokens: int) -> int:
    """Return the last optimizer step in a file of metrics up to a token count; 0 without any."""
    return max((entry["step"] for entry in entries(path) if entry["tokens"] <= tokens), default=0)


def missing_rows(
    run_dir: Path, recorded: Callable[[int, int, str], bool]
) -> Iterator[tuple[int, int, dict[str, float], list[tuple[str, str]]]]:
    """Yield tokens, step, metrics and texts that another logger has not recorded, in the order of tokens.

    Args:
        run_dir: The run directory.
        recorded: Returns whether the logger has a name at a token count and step.
    """
    texts: dict[int, list[tuple[str, str]]] = {}
    for line in _texts(run_dir / TEXTS):
        texts.setdefault(line["tokens"], []).append((line["name"], line["text"]))
    rows: dict[tuple[int, int], dict[str, float]] = {}
    for entry in entries(run_dir / METRICS):
        key = entry["tokens"], entry["step"]
        values = {name: value for name, value in entry.items() if name not in _KEYS and value is not None}
        rows.setdefault(key, {}).update(values)
    for (tokens, step), metrics in sorted(rows.items()):
        lost = {name: value for name, value in metrics.items() if not recorded(tokens, step, name)}
        lost_texts = [each for each in texts.get(tokens, ()) if not recorded(tokens, step, each[0])]
        if lost or lost_texts:
            yield tokens, step, lost, lost_texts


def _texts(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and {"tokens", "name", "text"} <= entry.keys():
                yield entry


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def supersede(path: Path, superseded: Path, resume_tokens: int | None) -> None:
    """Move the lines of `path` after `resume_tokens` (None: all lines) to the end of `superseded`.

    Truncated and invalid lines move, too.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    keep = [_tokens(line) <= (-1 if resume_tokens is None else resume_tokens) for line in lines]
    if all(keep):
        return
    # Copy first, then replace: a crash in between duplicates lines but loses none.
    with superseded.open("ab") as archive:
        archive.writelines(line.rstrip(b"\n") + b"\n" for line, kept in zip(lines, keep, strict=True) if not kept)
        archive.flush()
        os.fsync(archive.fileno())
    with replaced(path) as rest:
        rest.write_bytes(b"".join(line for line, kept in zip(lines, keep, strict=True) if kept))


def _tokens(line: bytes) -> float:
    """Return the token count of a complete line, infinity for any other."""
    try:
        return int(json.loads(line)["tokens"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
