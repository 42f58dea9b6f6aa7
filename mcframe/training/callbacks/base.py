"""The base class of the trainer's callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer


class TrainerCallback:
    """An action of the trainer that recurs every `every` dataset tokens.

    Args:
        every: Dataset tokens between two calls; 0 for none during training.
        at_start: Whether it is due before the first step of a new run.
        at_end: Whether it is due at the end of the run.

    Attributes:
        watches: Its name in warnings if it only watches the run, so that an exception of it does not end the run.
        last_tokens: Token count of the last call.
    """

    watches = ""

    def __init__(self, every: int, *, at_start: bool = False, at_end: bool = True) -> None:
        self.every, self.at_start, self.at_end = every, at_start, at_end
        self.last_tokens = -1

    def due(self, trainer: Trainer) -> bool:
        """Return whether it is due after the last step, or before the first."""
        if self.last_tokens == trainer.state.tokens:
            return False
        if trainer.state.step == 0:
            return self.at_start
        return trainer.state.due(self.every) or (trainer.state.finished and self.at_end)

    def __call__(self, trainer: Trainer) -> None:
        """Act, unless it has acted at this token count."""
        if self.last_tokens != trainer.state.tokens:
            self.run(trainer)
            self.last_tokens = trainer.state.tokens

    def run(self, trainer: Trainer) -> None:
        """Act. Called on every rank."""
        raise NotImplementedError
