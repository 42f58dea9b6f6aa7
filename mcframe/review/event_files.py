"""TensorBoard's event files as series, for runs that left no metrics.jsonl; and the texts in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcframe.review.series import Series

_PATTERN = "*tfevents*"
_TOKENS, _PER_STEP = "train/tokens", "train/tokens_per_step"
_TEXT = "/text_summary"


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
    for at, _, name, value in _scalars(directory):
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
    """(x, text) of the first and the last text of this name."""
    kept: list[tuple[int, str]] = []
    for event in _events(directory):
        for value in event.summary.value:
            if value.tag == name + _TEXT and value.tensor.string_val:
                text = value.tensor.string_val[0].decode("utf-8", "replace")
                lines = "\n".join(line.removeprefix("    ") for line in text.splitlines())
                kept = [*kept[:1], (event.step, lines)]
    return kept


def _scalars(directory: Path) -> Iterator[tuple[int, float, str, float]]:
    """(x, wall time, name, value) of every scalar."""
    for event in _events(directory):
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


def _events(directory: Path) -> Iterator[Any]:
    files = event_files(directory)
    if not files:
        return
    # Imported late: it takes a second.
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for file in files:
        # The loader ends quietly at a record that a crash has torn.
        yield from EventFileLoader(str(file)).Load()
