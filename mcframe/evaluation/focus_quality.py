"""The evaluation `focus`: at one budget, does LensNet keep what the model needs?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcframe.context.context_tree import ContextTree
from mcframe.context.substitutions import Condition
from mcframe.errors import require
from mcframe.evaluation.collapse import entries, nodes_to_collapse
from mcframe.evaluation.focus_baselines import Strategies, tail_targets
from mcframe.evaluation.focus_report import StrategyResult, describe
from mcframe.hookspecs import EvalModel, EvalResult, Evaluation, SyntheticTask


@dataclass(frozen=True)
class Budget:
    """A budget as a fraction of the window, in entries, and the blocks that must be collapsed for it."""

    fraction: float
    entries: int
    collapsed: int


class FocusQuality(Evaluation):
    """Random, recency, surprise, lens and oracle at each budget, other blocks as gists and dropped.

    Args:
        name: Part of its metrics' names.
        windows: Held-out sequences.
        budgets: Fractions of T; budgets that contexts of LOD0 and LOD1 do not reach are skipped.
        draws: Focuses of each sequence by the random strategy, averaged.
        task: `@task.NAME` in place of what the run trains on.
        resamples: Resamples of the bootstrap.
    """

    def __init__(
        self,
        *,
        name: str = "focus_quality",
        windows: int = 128,
        budgets: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
        draws: int = 4,
        task: Callable[[ContextTree], SyntheticTask] | None = None,
        resamples: int = 2000,
    ) -> None:
        require(windows >= 1, "evaluation.focus_quality.windows", windows, "1 or more")
        require(draws >= 1, "evaluation.focus_quality.draws", draws, "1 or more")
        require(resamples >= 1, "evaluation.focus_quality.resamples", resamples, "1 or more")
        for budget in budgets:
            require(0 < budget < 1, "evaluation.focus_quality.budgets", budget, "fractions above 0 and below 1")
        self.name, self.windows, self.budgets = name, windows, budgets
        self.draws, self.task, self.resamples = draws, task, resamples

    def run(self, subject: EvalModel) -> EvalResult:
        """Choose and judge every focus at every budget."""
        tree, notes = subject.tree, list[str]()
        held = subject.held_out(self.windows, self.task)
        counts = tail_targets(held, tree)
        if not bool(counts.any()):
            return EvalResult({}, notes=[f"{self.name}: no target stands behind the cursor, so nothing judges a focus"])
        budgets = reachable(tree, self.budgets, notes)
        conditions: tuple[Condition, ...] = ("drop", "gist") if subject.has_gists else ("drop",)
        each = (self.draws + 2 + subject.has_lens) * len(conditions) + subject.has_lens
        contexts = 1 + tree.compressible_nodes(1) + len(budgets) * (each + len(conditions) - 1)
        subject.announce(held.tokens.shape[0] * contexts)
        strategies = Strategies(subject, held, self.draws)
        found = []
        for budget in budgets:
            for strategy, focus in strategies.focuses(budget.entries, notes).items():
                for condition in conditions:
                    nll, right = subject.score(held.tokens, focus, condition)
                    found.append(
                        StrategyResult(budget.fraction, strategy, condition, focus, nll.mean(dim=1), right.mean(dim=1))
                    )
        if not subject.has_lens:
            notes.append("the model has no LensNet: there is no focus gain")
        return describe(self.name, found, strategies.full, counts, held, tree, notes, subject.seed, self.resamples)


def reachable(tree: ContextTree, fractions: Sequence[float], notes: list[str]) -> list[Budget]:
    """The budgets that contexts of raw tokens and LOD1 gists can have; `notes` tells of the others."""
    found = []
    for fraction in fractions:
        budget = entries(tree, fraction)
        collapsed, most = nodes_to_collapse(tree, 1, budget), tree.compressible_nodes(1)
        if collapsed > most:
            shortest = tree.window - most * tree.saving(1)
            notes.append(
                f"a budget of {100 * fraction:g} % ({budget} entries) is left out: the shortest context has {shortest} "
                f"({100 * shortest / tree.window:.1f} %)"
            )
        else:
            found.append(Budget(fraction, budget, collapsed))
    return found
