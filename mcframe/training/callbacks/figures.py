"""Draw the figures of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcframe.config.training_schema import FiguresConfig
from mcframe.training.callbacks.base import TrainerCallback

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer


class Figures(TrainerCallback):
    """Draw what the recorder has recorded. Nothing is drawn on ranks other than 0."""

    watches = "the figures"

    def __init__(self, config: FiguresConfig) -> None:
        super().__init__(config.every, at_end=config.every > 0)

    def run(self, trainer: Trainer) -> None:
        """Draw the figures."""
        trainer.recorder.draw()
