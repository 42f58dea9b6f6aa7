"""Steps and dataset tokens of a run. Intervals are counted in tokens, never in steps.

A MegaContext run and its plain baseline read the same tokens in a step, so they log and validate at the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainState:
    """Progress of a run.

    Attributes:
        batch_tokens: Dataset tokens of a step.
        total_steps: Steps of the complete run.
        step: Steps done.
        stopped: Whether the run ends before all steps are done.
    """

    batch_tokens: int
    total_steps: int
    step: int = 0
    stopped: bool = False

    @property
    def tokens(self) -> int:
        """Dataset tokens read so far."""
        return self.step * self.batch_tokens

    @property
    def total_tokens(self) -> int:
        """Dataset tokens of the complete run."""
        return self.total_steps * self.batch_tokens

    @property
    def finished(self) -> bool:
        """True if no step is left to do."""
        return self.stopped or self.step >= self.total_steps

    def advance(self) -> None:
        """Count an optimizer step."""
        self.step += 1

    def due(self, every: int) -> bool:
        """Return whether the last step crossed a multiple of `every` tokens (0 = never)."""
        return every > 0 and self.tokens // every > (self.tokens - self.batch_tokens) // every
