"""Figures during training: their data is recorded, logged as histograms, and drawn."""

from __future__ import annotations

import logging
from pathlib import Path

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.files import replaced
from mcframe.metrics.accumulator import Reading
from mcframe.metrics.figure_data import PictureRecord, histograms, readings
from mcframe.metrics.figures import Image, pictures
from mcframe.metrics.history import History
from mcframe.metrics.loggers import Loggers
from mcframe.registry.attribution import last_line

FOLDER = "pictures"
_log = logging.getLogger(__name__)


class FigureRecorder:
    """Figures of a run, on rank 0 only.

    Args:
        directory: the run directory; a resumed run continues its `pictures.jsonl`.
        tree: the tree of the window.
        loggers: receive histograms and images.
        resume_tokens: token count at which the run resumes; None for a fresh start.
    """

    def __init__(self, directory: Path, tree: ContextTree, loggers: Loggers, resume_tokens: int | None) -> None:
        self._directory, self._tree, self._loggers = directory, tree, loggers
        self._record, self._history = PictureRecord(directory, resume_tokens), History()
        for tokens, _, reading in readings(self._record.path):
            self._history.add(tokens, reading)

    @property
    def locations(self) -> dict[str, Path]:
        """A label and the folder of the figures, for the summary of the run; empty if nothing has been drawn."""
        folder = self._directory / FOLDER
        return {"pictures": folder} if folder.exists() else {}

    def record(self, tokens: int, step: int, reading: Reading) -> None:
        """Record a reading. That of a plain baseline has no counts and is skipped."""
        if not reading.counts:
            return
        try:
            self._record.write(tokens, step, reading)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._record.path, last_line(error))
        self._history.add(tokens, reading)

    def log(self, tokens: int, reading: Reading) -> None:
        """Log the histograms of a reading, after the metrics of its step: loggers add them to the latest row."""
        for name, histogram in sorted(histograms(reading).items()):
            self._loggers.histogram(tokens, name, histogram)

    def draw(self, tokens: int) -> None:
        """Draw the figures, replace `pictures/NAME.png`, and log the images. A failed write costs a warning."""
        label = f"{self._directory.resolve().name}, {tokens:,} tokens"
        for name, image in pictures(self._history, self._tree, label):
            try:
                _save(image, self._directory / FOLDER / f"{name}.png")
            except UserError as error:
                _log.warning("figure %s cannot be written: %s", name, last_line(error))
            self._loggers.image(tokens, f"{FOLDER}/{name}", image)


def _save(image: Image, file: Path) -> None:
    from matplotlib.image import imsave

    with replaced(file) as partial:
        imsave(partial, image, format="png")
