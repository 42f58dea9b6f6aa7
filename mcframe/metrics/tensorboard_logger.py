"""Metrics and working contexts for TensorBoard, with dataset tokens as the x axis."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcframe.hookspecs import Histogram, MetricLogger, RunStart
from mcframe.metrics.dashboard import tensorboard_layout

DIRECTORY = "tensorboard"


def write_layout(directory: Path) -> Path:
    """Write the dashboard alone, as one more event file of a folder of TensorBoard's. Returns the folder it is in.

    Of runs below `directory`, such as `RUN/tensorboard`, any may have it: TensorBoard shows it for all.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = directory / DIRECTORY if (directory / DIRECTORY).is_dir() else directory
    with SummaryWriter(str(folder), filename_suffix=".dashboard") as writer:
        writer.add_custom_scalars(tensorboard_layout())
    return folder


class TensorBoardLogger(MetricLogger):
    """Writes event files to `RUN/tensorboard`, and the dashboard, which TensorBoard shows under Custom Scalars.

    On resumption TensorBoard is told to forget what lies behind that point (at a fresh start: everything), so that
    the steps that are run again do not show twice.
    """

    def __init__(self, run: RunStart) -> None:
        # Imported here: it takes a second, and only rank 0 of a run needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._directory = run.directory / DIRECTORY
        purge = 0 if run.resume_tokens is None else run.resume_tokens + 1
        self._writer = SummaryWriter(str(self._directory), purge_step=purge)
        self._writer.add_custom_scalars(tensorboard_layout())

    @property
    def place(self) -> tuple[str, str]:
        """A label, and the command that shows the event files."""
        return "TensorBoard", f"tensorboard --logdir {shlex.quote(str(self._directory))}"

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each metric's curve, at x = tokens."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=tokens)
        self._writer.flush()

    def text(self, tokens: int, name: str, text: str) -> None:
        """Show a text; indented, because TensorBoard reads Markdown and would run the lines together."""
        block = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text(name, block, global_step=tokens)

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Show a picture."""
        self._writer.add_image(name, image, global_step=tokens, dataformats="HWC")

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Show a distribution; its sum and sum of squares are those of the bins' centres."""
        edges, counts = np.asarray(histogram.edges, np.float64), np.asarray(histogram.counts, np.float64)
        centres = (edges[1:] + edges[:-1]) / 2
        self._writer.add_histogram_raw(
            name, min=float(edges[0]), max=float(edges[-1]), num=int(counts.sum()), sum=float(counts @ centres),
            sum_squares=float(counts @ centres**2), bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist(),
            global_step=tokens,
        )  # fmt: skip

    def close(self) -> None:
        """Write what is left and close the event file."""
        self._writer.close()
