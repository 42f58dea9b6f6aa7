"""Logger for TensorBoard, with dataset tokens as the x axis."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcframe.hookspecs import Histogram, MetricLogger, RunStart
from mcframe.metrics.dashboard import tensorboard_layout

DIRECTORY = "tensorboard"


def write_layout(directory: Path) -> Path:
    """Write the dashboard alone, as another event file, and return its folder.

    TensorBoard shows a dashboard for all runs below its log directory, so that one event file suffices.

    Args:
        directory: a run directory, or a folder of event files.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = directory / DIRECTORY if (directory / DIRECTORY).is_dir() else directory
    with SummaryWriter(str(folder), filename_suffix=".dashboard") as writer:
        writer.add_custom_scalars(tensorboard_layout())
    return folder


def _recorded(directory: Path) -> set[tuple[int, str]]:
    """Return the token counts and names of the points in event files, less those that a later session replaced."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = set[tuple[int, str]]()
    for file in sorted(directory.glob("*tfevents*"), key=lambda file: file.name):
        for event in LegacyEventFileLoader(str(file)).Load():
            if event.HasField("session_log"):
                found = {each for each in found if each[0] < event.step}
            found |= {(event.step, value.tag.removesuffix("/text_summary")) for value in event.summary.value}
    return found


class TensorBoardLogger(MetricLogger):
    """Writes event files to `RUN/tensorboard`, and the dashboard, which TensorBoard shows under Custom Scalars.

    On resumption, TensorBoard drops the events after that point (of an earlier run: all events), so that repeated steps
    appear once.
    """

    def __init__(self, run: RunStart) -> None:
        # The import takes a second and is needed on rank 0 only.
        from torch.utils.tensorboard import SummaryWriter

        self._directory = run.directory / DIRECTORY
        purge = 0 if run.resume_tokens is None else run.resume_tokens + 1
        self._recorded = set[tuple[int, str]]() if run.resume_tokens is None else _recorded(self._directory)
        self._hook = threading.excepthook
        threading.excepthook = self._without_traceback
        self._writer = SummaryWriter(str(self._directory), purge_step=purge)
        self._writer.add_custom_scalars(tensorboard_layout())

    def recorded(self, tokens: int, step: int, name: str) -> bool:
        """Return whether an earlier session has recorded a metric or a text."""
        return (tokens, name) in self._recorded

    @property
    def location(self) -> tuple[str, str]:
        """A label, and the command that shows the event files."""
        return "TensorBoard", f"tensorboard --logdir {shlex.quote(str(self._directory))}"

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to the curve of each metric, at x = tokens."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=tokens)
        self._writer.flush()

    def text(self, tokens: int, name: str, text: str) -> None:
        """Add a text, indented as a code block of Markdown to keep its lines."""
        block = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text(name, block, global_step=tokens)

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Add an image."""
        self._writer.add_image(name, image, global_step=tokens, dataformats="HWC")

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Add a histogram; its sum and sum of squares are those of the centres of the bins."""
        edges, counts = np.asarray(histogram.edges, np.float64), np.asarray(histogram.counts, np.float64)
        centres = (edges[1:] + edges[:-1]) / 2
        self._writer.add_histogram_raw(
            name, min=float(edges[0]), max=float(edges[-1]), num=int(counts.sum()), sum=float(counts @ centres),
            sum_squares=float(counts @ centres**2), bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist(),
            global_step=tokens,
        )  # fmt: skip

    def close(self) -> None:
        """Close the event file."""
        try:
            self._writer.close()
        finally:
            if threading.excepthook == self._without_traceback:
                threading.excepthook = self._hook

    def _without_traceback(self, failure: threading.ExceptHookArgs) -> None:
        """Print nothing for the thread that writes the file: the next call raises its exception again."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook(failure)
