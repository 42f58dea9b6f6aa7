"""The interface of loggers, which store or show a run's metrics."""

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
    """The run that a logger is opened for.

    Attributes:
        directory: The run's directory, which exists.
        config: Every binding by its gin name, macros resolved, as values of JSON.
        resume_tokens: The token count at which the run resumes; what was logged after it is computed again. None for a
            new run.
    """

    directory: Path
    config: Mapping[str, Any]
    resume_tokens: int | None


@dataclass(frozen=True)
class Histogram:
    """A distribution of values: `counts[i]` of them lie from `edges[i]` to `edges[i + 1]`.

    The first and the last bin also hold the values beyond them.
    """

    edges: Sequence[float]
    counts: Sequence[int]


class MetricLogger(ABC):
    """Store or show the metrics of a run. Factory: `factory(run)`, with a `RunStart`. Exists on rank 0 only.

    `tokens` counts dataset tokens, the x axis of every metric. A logger that raises is closed and skipped for the rest
    of the run, with one message that names it: training does not depend on loggers. A method without a use need not
    be overridden.

        class Terminal(MetricLogger):
            def __init__(self, run): ...

            def write(self, tokens, step, metrics):
                print(tokens, metrics)
    """

    @property
    def location(self) -> tuple[str, str] | None:
        """A label, and the location of the output or the command that shows it; None if there is neither."""
        return None

    @abstractmethod
    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics that were read back at this token count and optimizer step, reduced over ranks.

        Called once a logging interval and once a validation, which may fall on the same step. Values may be NaN.
        """

    def text(self, tokens: int, name: str, text: str) -> None:
        """Log a text of several lines in which columns line up, such as strips of working contexts, or samples."""
        return

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Log a picture: red, green and blue of every pixel, [height, width, 3] from the upper left corner."""
        return

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Log a distribution over the logging interval that ends here."""
        return

    def close(self) -> None:
        """Write the rest: the run has ended, or this logger has raised."""
        return
