"""The evaluation `focus`: at one budget, does LensNet keep what the model needs?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcframe.context.controls import Condition
from mcframe.context.geometry import Geometry
from mcframe.errors import require
from mcframe.evaluation.focus_findings import Judged, describe
from mcframe.evaluation.focuses import entries, nodes_to_collapse
from mcframe.evaluation.strategies import Strategies, judged_targets
from mcframe.hookspecs import Evaluation, Findings, Subject, Task


@dataclass(frozen=True)
class Budget:
    """A budget as a fraction of the window, in entries, and the blocks that must be collapsed for it."""

    fraction: float
    entries: int
    collapsed: int


class Focus(Evaluation):
    """random, recency, surprise, lens and oracle at several budgets, unfocused blocks as gists and dropped.

    name       names the metrics
    windows    held-out sequences
    budgets    fractions of the window; those that no context of LOD1 reaches are left out
    draws      random focuses of each sequence, averaged
    task       generated sequences in place of what the run trains on
    resamples  of the bootstrap
    """

    def __init__(
        self,
        *,
        name: str = "focus",
        windows: int = 128,
        budgets: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
        draws: int = 4,
        task: Callable[[Geometry], Task] | None = None,
        resamples: int = 2000,
    ) -> None:
        require(windows >= 1, "evaluation.focus.windows", windows, "1 or more")
        require(draws >= 1, "evaluation.focus.draws", draws, "1 or more")
        require(resamples >= 1, "evaluation.focus.resamples", resamples, "1 or more")
        for budget in budgets:
            require(0 < budget < 1, "evaluation.focus.budgets", budget, "fractions above 0 and below 1")
        self.name, self.windows, self.budgets = name, windows, budgets
        self.draws, self.task, self.resamples = draws, task, resamples

    def run(self, subject: Subject) -> Findings:
        """Choose and judge every focus at every budget."""
        geometry, notes = subject.geometry, list[str]()
        held = subject.held_out(self.windows, self.task)
        counts = judged_targets(held, geometry)
        if not bool(counts.any()):
            return Findings({}, notes=[f"{self.name}: no target stands behind the cursor, so nothing judges a focus"])
        budgets = reachable(geometry, self.budgets, notes)
        conditions: tuple[Condition, ...] = ("drop", "gist") if subject.has_gists else ("drop",)
        each = (self.draws + 2 + subject.has_lens) * len(conditions) + subject.has_lens
        contexts = 1 + geometry.compressible_nodes(1) + len(budgets) * (each + len(conditions) - 1)
        subject.announce(held.tokens.shape[0] * contexts)
        strategies = Strategies(subject, held, self.draws)
        found = []
        for budget in budgets:
            for strategy, focus in strategies.focuses(budget.entries, notes).items():
                for condition in conditions:
                    nll, right = subject.judge(held.tokens, focus, condition)
                    found.append(
                        Judged(budget.fraction, strategy, condition, focus, nll.mean(dim=1), right.mean(dim=1))
                    )
        if not subject.has_lens:
            notes.append("the model has no LensNet: there is no focus gain")
        return describe(self.name, found, strategies.full, counts, held, geometry, notes, subject.seed, self.resamples)


def reachable(geometry: Geometry, fractions: Sequence[float], notes: list[str]) -> list[Budget]:
    """The budgets that contexts of raw tokens and LOD1 gists can have; `notes` tells of the others."""
    found = []
    for fraction in fractions:
        budget = entries(geometry, fraction)
        collapsed, most = nodes_to_collapse(geometry, 1, budget), geometry.compressible_nodes(1)
        if collapsed > most:
            shortest = geometry.window - most * geometry.saving(1)
            notes.append(
                f"a budget of {100 * fraction:g} % ({budget} entries) is left out: the shortest context has {shortest} "
                f"({100 * shortest / geometry.window:.1f} %)"
            )
        else:
            found.append(Budget(fraction, budget, collapsed))
    return found
