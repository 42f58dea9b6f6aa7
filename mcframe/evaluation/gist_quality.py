"""The evaluation `controls`: what stands for a collapsed block changes, focus and targets stay.

docs/concepts.md, Controls, says what is compared with what and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import lengths
from mcframe.context.substitutions import Condition
from mcframe.errors import require
from mcframe.evaluation.collapse import entries, nodes_to_collapse, random_focus
from mcframe.evaluation.gist_report import Comparison, describe
from mcframe.evaluation.swap_pairs import neighboured
from mcframe.hookspecs import EvalData, EvalModel, EvalResult, Evaluation, SyntheticTask

RUN10 = 0.9
"""The length of run10's first variants, as a fraction of the window: about 11 % of the tokens stand behind gists."""


@dataclass(frozen=True)
class Measured:
    """One focus of every sequence, judged: all [n, T], NaN where a condition predicts nothing.

    nll    the uncompressed NLL of this model
    delta  condition -> NLL minus the uncompressed one of the same model; right: whether the likeliest token was right
    `drop_baseline` and `mean_baseline` are the baselines' conditions, each against its own uncompressed NLL.
    """

    focus: Tensor
    nll: Tensor
    delta: dict[str, Tensor]
    right: dict[str, Tensor]


class GistQuality(Evaluation):
    """Full, drop, mean, swap and gist under random focuses of each level.

    Args:
        name: Part of its metrics' names.
        windows: Held-out sequences; 2 or more.
        lengths: Target lengths of the contexts, as fractions of T; None = `context.length_end` and 0.9.
        task: `@task.NAME` in place of what the run trains on.
        resamples: Resamples of the bootstrap.
    """

    def __init__(
        self,
        *,
        name: str = "gist_quality",
        windows: int = 256,
        lengths: Sequence[float] | None = None,
        task: Callable[[ContextTree], SyntheticTask] | None = None,
        resamples: int = 2000,
    ) -> None:
        require(windows >= 2, "evaluation.gist_quality.windows", windows, "2 or more")
        require(resamples >= 1, "evaluation.gist_quality.resamples", resamples, "1 or more")
        for length in lengths or ():
            require(0 < length < 1, "evaluation.gist_quality.lengths", length, "fractions above 0 and below 1")
        self.name, self.windows, self.lengths = name, windows, lengths
        self.task, self.resamples = task, resamples

    def run(self, subject: EvalModel) -> EvalResult:
        """Judge every condition under every focus."""
        tree = subject.tree
        wanted = dict.fromkeys(self.lengths or (subject.length, RUN10))
        found = subject.held_out(self.windows, self.task)
        held = neighboured(found, tree) if subject.has_gists else found
        swappable, notes = subject.has_gists and held is not None, list[str]()
        if subject.has_gists and held is None:
            notes.append("swap is left out: no two held-out sequences come from different documents")
        held = held or found
        if held.tokens.shape[0] < found.tokens.shape[0]:
            notes.append(
                f"{found.tokens.shape[0] - held.tokens.shape[0]} of {found.tokens.shape[0]} sequences are left out: no "
                "other sequence of another document is left to swap gists with"
            )
        chosen = conditions(subject, swappable)
        focuses = _focuses(tree, list(wanted), notes)
        baselines = 2 * len(subject.baselines)
        subject.announce(held.tokens.shape[0] * (1 + baselines + len(focuses) * (len(chosen) - 1 + baselines)))
        comparisons = []
        for lod, fraction, count in focuses:
            seeds = variant_seeds(subject.seed, torch.arange(held.tokens.shape[0]), 1)[:, 0]
            focus = random_focus(seeds, tree, lod, count)
            measured = measure(subject, held, focus, chosen)
            comparisons.append(
                Comparison(
                    f"lod{lod}_at_{100 * fraction:g}", lod, int(lengths(focus[:1], tree)), measured.focus,
                    measured.nll, measured.delta, measured.right,
                )
            )  # fmt: skip
        return describe(self.name, comparisons, held, tree, notes, subject.seed, self.resamples)


def conditions(subject: EvalModel, swappable: bool) -> tuple[Condition, ...]:
    """The conditions that a model knows: without a GistNet there is nothing to swap."""
    most: tuple[Condition, ...] = ("full", "drop", "mean")
    if subject.has_gists:
        most += ("swap", "gist") if swappable else ("gist",)
    return most


def measure(subject: EvalModel, held: EvalData, focus: Tensor, chosen: Sequence[Condition]) -> Measured:
    """Judge every condition, and every baseline's own, under one focus [n, blocks]."""
    full, right = subject.score(held.tokens, focus, "full")
    delta, rights = dict[str, Tensor](), {"full": right}
    for condition in chosen:
        if condition != "full":
            nll, rights[condition] = subject.score(held.tokens, focus, condition)
            delta[condition] = nll - full
    for name, baseline in subject.baselines.items():
        condition = "drop" if name == "drop" else "mean"
        own, _ = baseline.score(held.tokens, focus, "full")
        nll, rights[f"{name}_baseline"] = baseline.score(held.tokens, focus, condition)
        delta[f"{name}_baseline"] = nll - own
    return Measured(focus, full, delta, rights)


def _focuses(tree: ContextTree, fractions: Sequence[float], notes: list[str]) -> list[tuple[int, float, int]]:
    """(LOD, length as a fraction, nodes to collapse) of every focus that can be had; `notes` tells of the others."""
    found: dict[tuple[int, int], tuple[int, float, int]] = {}
    for lod in range(1, tree.levels + 1):
        most = tree.compressible_nodes(lod)
        for fraction in fractions:
            count = nodes_to_collapse(tree, lod, entries(tree, fraction))
            if not most:
                notes.append(f"LOD{lod} is left out: no node of it may be collapsed")
                break
            if count > most:
                notes.append(
                    f"LOD{lod} at {100 * fraction:g} %: out of reach, so everything that may be is collapsed, "
                    f"{tree.window - most * tree.saving(lod)} of {tree.window} entries"
                )
            found.setdefault((lod, min(count, most)), (lod, fraction, min(count, most)))
    return list(found.values())
