"""The evaluation `gist_quality`: the replacement of collapsed blocks changes, focus and targets are fixed.

See docs/evaluation.md for the conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mcframe.bounds import OpenFraction
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import lengths
from mcframe.context.substitutions import Condition
from mcframe.evaluation.collapse import entries, nodes_to_collapse, random_focus
from mcframe.evaluation.gist_report import Comparison, ConditionScores, describe
from mcframe.evaluation.swap_pairs import paired
from mcframe.hookspecs import EvalData, EvalModel, EvalResult, Evaluation, SyntheticTask

RUN10 = 0.9
"""Length of run10's first variants as a fraction of the window: gists replace about 11 % of the tokens."""


class GistQuality(Evaluation):
    """Full, drop, mean, swap and gist under random focuses of each level.

    Args:
        name: Part of its metrics' names.
        windows: Held-out sequences; 2 or more.
        lengths: Target lengths of the contexts, as fractions of T; None = `context.length_end` and 0.9.
        task: `@task.NAME` in place of what the run trains on.
    """

    def __init__(
        self,
        *,
        name: str = "gist_quality",
        windows: Annotated[int, Field(ge=2, le=1_000_000)] = 256,
        lengths: Sequence[OpenFraction] | None = None,
        task: Callable[[ContextTree], SyntheticTask] | None = None,
    ) -> None:
        self.name, self.windows, self.lengths, self.task = name, windows, lengths, task
        self.fractions = lengths or ()

    def run(self, model: EvalModel) -> EvalResult:
        """Score every condition under every focus."""
        tree, notes = model.tree, list[str]()
        data = model.held_out(self.windows, self.task)
        pairs = _paired(data, tree, notes) if model.has_gists else None
        data = pairs or data
        conditions = conditions_of(model, swappable=pairs is not None)
        focuses = _focuses(tree, list(dict.fromkeys(self.lengths or (model.length, RUN10))), notes)
        rows, baselines = data.tokens.shape[0], 2 * len(model.baselines)
        model.announce(rows * (1 + baselines + len(focuses) * (len(conditions) - 1 + baselines)))
        seeds = variant_seeds(model.seed, torch.arange(rows), 1)[:, 0]
        comparisons = []
        for lod, fraction, count in focuses:
            focus = random_focus(seeds, tree, lod, count)
            scores = score_conditions(model, data, focus, conditions)
            name = f"lod{lod}_at_{100 * fraction:g}"
            comparisons.append(Comparison(name, lod, int(lengths(focus[:1], tree)), scores))
        return describe(self.name, comparisons, data, tree, notes)


def conditions_of(model: EvalModel, *, swappable: bool) -> tuple[Condition, ...]:
    """Return the conditions of a model. Without a GistNet, gists can be neither kept nor swapped."""
    if not model.has_gists:
        return "full", "drop", "mean"
    return ("full", "drop", "mean", "swap", "gist") if swappable else ("full", "drop", "mean", "gist")


def score_conditions(
    model: EvalModel, data: EvalData, focus: Tensor, conditions: Sequence[Condition]
) -> ConditionScores:
    """Return the scores of all conditions, and of each baseline's own, under one focus [n, blocks]."""
    full, right = model.score(data.tokens, focus, "full")
    delta, rights = dict[str, Tensor](), {"full": right}
    for condition in conditions:
        if condition != "full":
            nll, rights[condition] = model.score(data.tokens, focus, condition)
            delta[condition] = nll - full
    for name, baseline in model.baselines.items():
        own, _ = baseline.score(data.tokens, focus, "full")
        nll, rights[f"{name}_baseline"] = baseline.score(data.tokens, focus, "drop" if name == "drop" else "mean")
        delta[f"{name}_baseline"] = nll - own
    return ConditionScores(focus, full, delta, rights)


def _paired(data: EvalData, tree: ContextTree, notes: list[str]) -> EvalData | None:
    """Return the sequences that can swap gists, in pairs; None if no two can. Omissions get a note."""
    pairs, rows = paired(data, tree), data.tokens.shape[0]
    if pairs is None:
        notes.append("swap is skipped: no two held-out sequences come from different documents")
    elif pairs.tokens.shape[0] < rows:
        notes.append(
            f"{rows - pairs.tokens.shape[0]} of {rows} sequences are skipped: no sequence of another document remains "
            "to swap gists with"
        )
    return pairs


def _focuses(tree: ContextTree, fractions: Sequence[float], notes: list[str]) -> list[tuple[int, float, int]]:
    """Return (LOD, length as a fraction, nodes to collapse) of every possible focus. Omissions get a note."""
    found: dict[tuple[int, int], tuple[int, float, int]] = {}
    for lod in range(1, tree.levels + 1):
        most = tree.compressible_nodes(lod)
        if not most:
            notes.append(f"LOD{lod} is skipped: none of its nodes may be collapsed")
            continue
        for fraction in fractions:
            count = nodes_to_collapse(tree, lod, entries(tree, fraction))
            if count > most:
                notes.append(
                    f"LOD{lod} at {100 * fraction:g} % is out of reach: all nodes that may be are collapsed, "
                    f"{tree.window - most * tree.saving(lod)} of {tree.window} entries"
                )
            found.setdefault((lod, min(count, most)), (lod, fraction, min(count, most)))
    return list(found.values())
