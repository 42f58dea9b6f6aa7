"""The token clock: everything periodic fires when a number of dataset tokens has been read, never on step numbers.

A MegaContext run and its plain twin read the same tokens a step, so they log, validate and save at the same places.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainState:
    """Optimizer steps done, and what they read. `total_steps` end the run."""

    batch_tokens: int
    total_steps: int
    step: int = 0

    @property
    def tokens(self) -> int:
        """Dataset tokens read so far."""
        return self.step * self.batch_tokens

    @property
    def total_tokens(self) -> int:
        """Dataset tokens of the whole run."""
        return self.total_steps * self.batch_tokens

    @property
    def finished(self) -> bool:
        """No step is left."""
        return self.step >= self.total_steps

    def tick(self) -> None:
        """One more optimizer step is done."""
        self.step += 1

    def due(self, every: int) -> bool:
        """Whether the last step crossed a multiple of `every` tokens (0 = never)."""
        return every > 0 and self.tokens // every > (self.tokens - self.batch_tokens) // every
