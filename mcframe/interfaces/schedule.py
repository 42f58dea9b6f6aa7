"""The interface of a learning-rate schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Schedule(ABC):
    """The learning rate over training, as a factor on its peak. Factory: `factory()`. An example:

        class Linear(Schedule):
            def factor(self, step, total_steps):
                return 1 - step / total_steps

    It applies to every parameter group, in proportion to the group's own rate.
    """

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor on the peak learning rate of every parameter group, 0 or above.

        It depends on nothing but its arguments and settings, so that a resumed run continues it. It may be called for
        any step.

        Args:
            step: Optimizer steps before this one: 0 in the first, `total_steps - 1` in the last.
            total_steps: Optimizer steps of the complete run.
        """
