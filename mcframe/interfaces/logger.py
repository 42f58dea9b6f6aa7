"""The interface of what keeps or shows a run's measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RunStart:
    """What a sink is told of the run that it is opened for.

    directory      of the run; it exists
    config         every binding by its gin name, macros resolved, as values of JSON
    resume_tokens  where the token clock goes on: what was written behind it is about to be computed anew; None for a
                   fresh start
    """

    directory: Path
    config: Mapping[str, Any]
    resume_tokens: int | None


@dataclass(frozen=True)
class Histogram:
    """How values are distributed: `counts[i]` of them lie from `edges[i]` to `edges[i + 1]`.

    The first and the last bin also hold what lies beyond them.
    """

    edges: Sequence[float]
    counts: Sequence[int]


class MetricLogger(ABC):
    """Keeps or shows what a run measures. Factory: `factory(run)`, with a `RunStart`. Exists on rank 0 only.

    `tokens` is the token clock's reading, the x axis of everything. A sink that raises in a run is closed and left out
    of the rest of it, with one message that names it: training does not depend on who watches. What cannot be shown
    is not overridden.

        class Terminal(MetricLogger):
            def __init__(self, run): ...

            def write(self, tokens, step, metrics):
                print(tokens, metrics)
    """

    @property
    def location(self) -> tuple[str, str] | None:
        """A label, and where to look or what to run to see what was written; None where there is nothing to say."""
        return None

    @abstractmethod
    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Take metrics that were read back at this token count and optimizer step, reduced over ranks.

        Called once a logging interval and once a validation, which may fall on the same step. Values may be NaN.
        """

    def text(self, tokens: int, name: str, text: str) -> None:
        """Take a text of several lines in which columns line up, such as strips of working contexts, or samples."""
        return

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Take a picture: red, green and blue of every pixel, [height, width, 3] from the upper left corner."""
        return

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Take a distribution over the logging interval that ends here."""
        return

    def close(self) -> None:
        """Write what is left: the run has ended, or this sink has raised."""
        return
