"""The evaluation `focus_quality`: whether LensNet keeps the blocks that matter, at one budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcframe.bounds import OpenFraction, Repeats
from mcframe.context.context_tree import ContextTree
from mcframe.context.substitutions import Condition
from mcframe.evaluation.collapse import entries
from mcframe.evaluation.focus_baselines import Strategies, tail_targets
from mcframe.evaluation.focus_report import FocusScores, StrategyScores, describe
from mcframe.hookspecs import EvalModel, EvalResult, Evaluation, SyntheticTask


class FocusQuality(Evaluation):
    """Random, recency, surprise, lens and oracle at each budget, other blocks as gists and dropped.

    Args:
        name: Part of its metrics' names.
        windows: Held-out sequences.
        budgets: Fractions of T; budgets that no context reaches are skipped.
        draws: Focuses of each sequence by the random strategy, averaged.
        task: `@task.NAME` in place of what the run trains on.
    """

    def __init__(
        self,
        *,
        name: str = "focus_quality",
        windows: Repeats = 128,
        budgets: Sequence[OpenFraction] = (0.25, 0.5, 0.75, 0.9),
        draws: Repeats = 4,
        task: Callable[[ContextTree], SyntheticTask] | None = None,
    ) -> None:
        self.name, self.windows, self.budgets = name, windows, budgets
        self.draws, self.task, self.fractions = draws, task, budgets

    def run(self, model: EvalModel) -> EvalResult:
        """Choose every focus at every budget, and score it."""
        tree, notes = model.tree, list[str]()
        data = model.held_out(self.windows, self.task)
        counts = tail_targets(data, tree)
        if not bool(counts.any()):
            return EvalResult({}, notes=[f"{self.name}: no target after the cursor, so no focus can be scored"])
        budgets = reachable(tree, self.budgets, notes, model.has_lens)
        conditions: tuple[Condition, ...] = ("drop", "gist") if model.has_gists else ("drop",)
        each = (self.draws + 3 + model.has_lens) * len(conditions) + model.has_lens
        contexts = 1 + tree.compressible_nodes(1) + len(budgets) * each
        model.announce(data.tokens.shape[0] * contexts)
        strategies = Strategies(model, data, self.draws)
        found = []
        for fraction, budget in budgets.items():
            for strategy, focus in strategies.focuses(budget, notes).items():
                for condition in conditions:
                    nll, right = model.score(data.tokens, focus, condition)
                    found.append(
                        StrategyScores(fraction, strategy, condition, focus, nll.mean(dim=1), right.mean(dim=1))
                    )
        if not model.has_lens:
            notes.append("the model has no LensNet, so no focus gain is reported")
        scores = FocusScores(strategies.full, counts, data.documents[:, 1:], tree)
        return describe(self.name, found, scores, notes)


def reachable(tree: ContextTree, fractions: Sequence[float], notes: list[str], every_level: bool) -> dict[float, int]:
    """Return fraction -> budget in entries that contexts reach, of LOD0 and LOD1 only unless `every_level`.

    The others get a note.
    """
    most = tree.compressible_nodes(1)
    shortest = tree.minimum_length if every_level else tree.window - most * tree.saving(1)
    found = {}
    for fraction in fractions:
        budget = entries(tree, fraction)
        if budget >= shortest:
            found[fraction] = budget
        else:
            notes.append(
                f"a budget of {100 * fraction:g} % ({budget} entries) is skipped: the shortest context has {shortest} "
                f"({100 * shortest / tree.window:.1f} %)"
            )
    return found
