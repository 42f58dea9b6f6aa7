"""Pictures while training: what is read back is recorded, shown as histograms, and drawn on the token clock."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mcframe.context.context_tree import ContextTree
from mcframe.metrics.figure_data import PictureRecord, histograms
from mcframe.metrics.figures import Image, pictures
from mcframe.metrics.history import History
from mcframe.metrics.loggers import Loggers
from mcframe.metrics.tally import Reading
from mcframe.registry.plugins import last_line

FOLDER = "pictures"
_log = logging.getLogger(__name__)


class FigureRecorder:
    """The pictures of a run; rank 0 only. On resumption they go on from what `pictures.jsonl` holds."""

    def __init__(self, directory: Path, tree: ContextTree, loggers: Loggers, resume_tokens: int | None) -> None:
        self._directory, self._geometry, self._sinks = directory, tree, loggers
        self._record, self._history = PictureRecord(directory, resume_tokens), History()
        for tokens, reading in self._record.read():
            self._history.add(tokens, reading)

    @property
    def places(self) -> dict[str, Path]:
        """A label and the folder of what has been drawn, for the closing summary; empty where nothing has."""
        folder = self._directory / FOLDER
        return {"pictures": folder} if folder.exists() else {}

    def take(self, tokens: int, step: int, reading: Reading) -> None:
        """Record a reading and show its distributions; a plain twin's holds nothing."""
        if not reading.counts:
            return
        self._record.write(tokens, step, reading)
        self._history.add(tokens, reading)
        for name, histogram in sorted(histograms(reading).items()):
            self._sinks.histogram(tokens, name, histogram)

    def draw(self, tokens: int) -> None:
        """Draw what there is to `pictures/NAME.png`, over what was there, and hand it to the sinks.

        A file that cannot be written costs a warning.
        """
        label = f"{self._directory.resolve().name}, {tokens:,} tokens"
        for name, image in pictures(self._history, self._geometry, label):
            try:
                _save(image, self._directory / FOLDER / f"{name}.png")
            except OSError as error:
                _log.warning("the picture %s could not be kept: %s", name, last_line(error))
            self._sinks.image(tokens, f"{FOLDER}/{name}", image)


def _save(image: Image, file: Path) -> None:
    """A file that is whole at every moment."""
    from matplotlib.image import imsave

    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    imsave(partial, image, format="png")
    os.replace(partial, file)
