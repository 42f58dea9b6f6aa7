"""Scalars and texts of TensorBoard event files, for runs without `metrics.jsonl`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcframe.review.series import Values

_PATTERN = "*tfevents*"
_TOKENS, _PER_STEP = "train/tokens", "train/tokens_per_step"
_TEXT = "/text_summary"


@dataclass
class Events:
    """Contents of the event files of a folder.

    Attributes:
        scalars: name -> [(x, wall time, value)] of every point.
        texts: name -> [(x, text)].
    """

    scalars: dict[str, list[tuple[int, float, float]]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def counts_tokens(self) -> bool:
        """True if a metric of the log relates the x axis to tokens."""
        return bool(self.scalars.keys() & {_TOKENS, _PER_STEP})

    def clock(self, x: Values) -> tuple[Values, Values]:
        """Return (tokens, optimizer steps) of positions on the x axis.

        TensorBoard has one x axis without a unit. It is converted by `train/tokens` where the log has that metric, so
        that an axis of steps and one of tokens lead to the same result; else by `train/tokens_per_step`.
        """
        per_step = self.scalars[_PER_STEP][-1][2] if _PER_STEP in self.scalars else 0.0
        if _TOKENS not in self.scalars:
            return np.rint(x * per_step) if per_step else x, x
        points = np.array(self.scalars[_TOKENS])
        at, first = np.unique(points[:, 0], return_index=True)
        counted = points[first, 2]
        if at[0] > 0:
            at, counted = np.append(0.0, at), np.append(0.0, counted)
        after = counted[-1] / at[-1] if at[-1] else 1.0
        tokens = np.rint(np.where(x > at[-1], after * x, np.interp(x, at, counted)))
        return tokens, np.rint(tokens / per_step) if per_step else x


def event_files(directory: Path) -> list[Path]:
    """Return the event files of a folder and of its folder `tensorboard`, in the order in which they were started."""
    found = [*directory.glob(_PATTERN), *(directory / "tensorboard").glob(_PATTERN)]
    return sorted(found, key=lambda file: file.name)


def read_events(directory: Path) -> Events:
    """Read all event files of a folder, each up to its first incomplete record."""
    # Imported late: it takes a second.
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    events = Events()
    for file in event_files(directory):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag.endswith(_TEXT) and value.tensor.string_val:
                    text = value.tensor.string_val[0].decode("utf-8", "replace")
                    lines = (line.removeprefix("    ") for line in text.splitlines())
                    events.texts[value.tag.removesuffix(_TEXT)].append((event.step, "\n".join(lines)))
                elif (number := _number(value)) is not None:
                    events.scalars[value.tag].append((event.step, event.wall_time, number))
    return events


def _number(value: Any) -> float | None:
    """Return a scalar in either form that TensorBoard writes; None for any other summary."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or value.metadata.plugin_data.plugin_name not in ("", "scalars"):
        return None
    content = make_ndarray(value.tensor)
    return float(content) if content.size == 1 and content.dtype.kind in "fiu" else None
