"""Results of focus quality: NLL after the cursor at each budget, focus gain, and LensNet against each strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import lengths
from mcframe.context.substitutions import Condition
from mcframe.evaluation.bootstrap import Bootstrap
from mcframe.evaluation.focus_baselines import STRATEGIES
from mcframe.evaluation.report import as_metrics, few_targets, per_cent
from mcframe.hookspecs import Chart, EvalData, EvalResult, Interval, Table

WORTH_GAINING = 0.1
"""Least nats between random and oracle for a focus gain where unfocused blocks are gists: perfect gists leave no gain,
and a ratio of two noises means nothing."""

UNFOCUSED = {"drop": "dropped", "gist": "gists"}


@dataclass(frozen=True)
class StrategyResult:
    """One strategy at one budget: focuses [n, V, blocks]; NLL and accuracy [n, T], averaged over V."""

    budget: float
    strategy: str
    condition: Condition
    focus: Tensor
    nll: Tensor
    right: Tensor


@dataclass(frozen=True)
class BudgetResult:
    """Result of one budget and condition, all by strategy.

    Attributes:
        entries: mean length of the contexts.
        nll: after the cursor, `full` included.
        delta: NLL minus that of `full`, paired.
        accuracy: of the most likely token.
        lens_minus: NLL of lens minus that of the strategy; below 0, lens is better.
        gain: the focus gain, None if it is undefined.
        targets, documents: their numbers.
    """

    entries: dict[str, float]
    nll: dict[str, Interval]
    delta: dict[str, Interval]
    accuracy: dict[str, float]
    lens_minus: dict[str, Interval]
    gain: Interval | None
    targets: int
    documents: int


def describe(
    evaluation: str,
    found: Sequence[StrategyResult],
    full: Tensor,
    counts: Tensor,
    data: EvalData,
    tree: ContextTree,
    notes: Sequence[str],
    seed: int,
    resamples: int,
) -> EvalResult:
    """Return metrics, a table a budget, curves over budgets, and conclusions.

    Args:
        evaluation: name of the evaluation.
        found: results of all strategies at all budgets.
        full: [n, T] uncompressed NLL.
        counts: [n, T] bool, the scored targets.
        data: documents of the targets.
        tree: shape of the contexts.
        notes: notes so far.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    documents = data.documents[:, 1:][counts]
    metrics, tables, conclusions, remarks = dict[str, float](), [], list[str](), list(notes)
    every: dict[tuple[str, float], BudgetResult] = {}
    for budget, condition in dict.fromkeys((j.budget, j.condition) for j in found):
        chosen = [j for j in found if (j.budget, j.condition) == (budget, condition)]
        result = evaluate_budget(chosen, full, counts, documents, tree, seed, resamples)
        every[condition, budget] = result
        metrics |= flat(f"eval/{evaluation}/at_{100 * budget:g}", condition, result)
        title = f"{evaluation}: {100 * budget:g} % of the window, unfocused blocks {UNFOCUSED[condition]}"
        tables.append(table(title, result))
        if "lens" in result.nll:
            conclusions.append(f"{title}: {conclusion(result)}")
    if every:
        remarks += few_targets(evaluation, next(iter(every.values())).targets)
    return EvalResult(metrics, tables, curves(evaluation, every), conclusions, remarks)


def evaluate_budget(
    chosen: Sequence[StrategyResult],
    full: Tensor,
    counts: Tensor,
    documents: Tensor,
    tree: ContextTree,
    seed: int,
    resamples: int,
) -> BudgetResult:
    """Return the result of one budget and condition."""
    values = {"full": full[counts], **{j.strategy: j.nll[counts] for j in chosen}}
    bootstrap = Bootstrap(values, documents, seed=seed, resamples=resamples)
    nll = {name: bootstrap.mean(name) for name in values}
    delta = {
        j.strategy: bootstrap.interval(lambda means, name=j.strategy: means[name] - means["full"])  # type: ignore[misc]
        for j in chosen
    }
    lens_minus: dict[str, Interval] = {}
    gain = None
    if "lens" in values:
        for name in STRATEGIES:
            if name != "lens":
                lens_minus[name] = bootstrap.interval(lambda means, name=name: means["lens"] - means[name])  # type: ignore[misc]
        to_gain = bootstrap.interval(lambda means: means["random"] - means["oracle"])
        condition = chosen[0].condition
        if to_gain.low > 0 and (condition == "drop" or to_gain.value >= WORTH_GAINING):
            gain = bootstrap.interval(
                lambda means: (means["random"] - means["lens"]) / (means["random"] - means["oracle"])
            )
    sizes = {j.strategy: float(lengths(j.focus.flatten(0, 1), tree).double().mean()) for j in chosen}
    accuracy = {j.strategy: float(j.right[counts].mean()) for j in chosen}
    return BudgetResult(sizes, nll, delta, accuracy, lens_minus, gain, bootstrap.targets, bootstrap.documents)


def flat(prefix: str, condition: str, result: BudgetResult) -> dict[str, float]:
    """Return every value by name, such as `PREFIX/gain/drop`, with `_low` and `_high` for the bounds."""
    values: dict[str, Interval | float] = {
        f"{prefix}/targets": float(result.targets),
        f"{prefix}/documents": float(result.documents),
    }
    for group in ("nll", "delta", "lens_minus", "accuracy"):
        values |= {f"{prefix}/{group}/{condition}/{name}": each for name, each in getattr(result, group).items()}
    values |= {f"{prefix}/entries/{name}": each for name, each in result.entries.items()}
    if result.gain is not None:
        values[f"{prefix}/gain/{condition}"] = result.gain
    return as_metrics(values)


def table(title: str, result: BudgetResult) -> Table:
    """Return the table of a budget, a row a strategy. The focus gain is in the conclusion."""
    rows = [
        (
            name, f"{result.entries[name]:.1f}", f"{result.nll[name].value:.3f}", result.delta[name],
            per_cent(result.accuracy[name]), result.lens_minus.get(name),
        )
        for name in STRATEGIES if name in result.nll
    ]  # fmt: skip
    return Table(title, ("strategy", "entries", "NLL", "ΔNLL", "accuracy", "lens minus it"), rows)


def conclusion(result: BudgetResult) -> str:
    """Return the comparison of LensNet with random, recency and surprise, and the focus gain, as text."""
    minus = result.lens_minus
    parts = ["lens does not differ from random"]
    for better, word in ((True, "better"), (False, "worse")):
        names = [n for n in ("random", "recency", "surprise") if (minus[n].high < 0 if better else minus[n].low > 0)]
        if "random" in names:
            parts[0] = f"lens is {word} than random"
        others = [name for name in names if name != "random"]
        if others:
            parts.append(f"{word} than {' and '.join(others)}")
    parts.append("too little to gain for a focus gain" if result.gain is None else f"focus gain {result.gain}")
    return ", ".join(parts)


def curves(evaluation: str, every: dict[tuple[str, float], BudgetResult]) -> list[Chart]:
    """Return charts of the cost of each strategy after the cursor, and of the focus gain, over budgets."""
    charts = []
    gains: dict[str, list[tuple[float, Interval]]] = {}
    x = "budget, per cent of the window"
    for condition, word in UNFOCUSED.items():
        lines: dict[str, list[tuple[float, Interval]]] = {}
        for (of, budget), result in sorted(every.items(), key=lambda item: item[0]):
            if of != condition:
                continue
            for name, interval in result.delta.items():
                lines.setdefault(name, []).append((100 * budget, interval))
            if result.gain is not None:
                gains.setdefault(f"unfocused blocks {word}", []).append((100 * budget, result.gain))
        if lines:
            title = f"{evaluation}: unfocused blocks {word}"
            charts.append(Chart(f"{evaluation}_{condition}", title, x, "ΔNLL after the cursor in nats", lines))
    if gains:
        charts.append(Chart(f"{evaluation}_gain", f"{evaluation}: focus gain", x, "focus gain (1 = oracle)", gains))
    return charts
