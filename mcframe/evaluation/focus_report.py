"""Results of focus quality: NLL after the cursor at each budget, focus gain, and LensNet against each strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import lengths
from mcframe.context.substitutions import Condition
from mcframe.evaluation.document_means import DocumentMeans
from mcframe.evaluation.focus_baselines import STRATEGIES
from mcframe.evaluation.report import as_lines, as_metrics, enough, few_documents, no_conclusion, per_cent
from mcframe.hookspecs import Chart, EvalResult, Interval, Table

WORTH_GAINING = 0.1
"""Least nats between random and oracle for a focus gain if unfocused blocks are gists. Perfect gists leave nothing to
gain, and the ratio of two small differences is noise."""

UNFOCUSED = {"drop": "dropped", "gist": "gists"}


@dataclass(frozen=True)
class StrategyScores:
    """One strategy at one budget: focuses [n, V, blocks]; NLL and accuracy [n, T], averaged over V."""

    budget: float
    strategy: str
    condition: Condition
    focus: Tensor
    nll: Tensor
    right: Tensor


@dataclass(frozen=True)
class FocusScores:
    """The part of the scores that all strategies have in common, and how to compare them.

    Attributes:
        full: [n, T] uncompressed NLL.
        counts: [n, T] bool, the scored targets.
        documents: [n, T] document of each target.
        tree: Shape of the contexts.
    """

    full: Tensor
    counts: Tensor
    documents: Tensor
    tree: ContextTree


@dataclass(frozen=True)
class BudgetResult:
    """Result of one budget and condition, all by strategy.

    Attributes:
        entries: Mean length of the contexts.
        nll: After the cursor, `full` included.
        delta: NLL minus that of `full`, paired.
        accuracy: Of the most likely token.
        lens_minus: NLL of lens minus that of the strategy; below 0, lens is better.
        to_gain: NLL of random minus that of the oracle.
        gain: The focus gain, None if there is too little to gain or there are too few documents.
        targets, documents: Their numbers.
    """

    entries: dict[str, float]
    nll: dict[str, Interval]
    delta: dict[str, Interval]
    accuracy: dict[str, float]
    lens_minus: dict[str, Interval]
    to_gain: Interval
    gain: Interval | None
    targets: int
    documents: int


def describe(evaluation: str, found: Sequence[StrategyScores], scores: FocusScores, notes: Sequence[str]) -> EvalResult:
    """Return metrics, a table a budget, curves over budgets, and conclusions, after `notes`."""
    metrics, tables, conclusions, remarks = dict[str, float](), [], list[str](), list(notes)
    every: dict[tuple[str, float], BudgetResult] = {}
    for budget, condition in dict.fromkeys((each.budget, each.condition) for each in found):
        strategies = [each for each in found if (each.budget, each.condition) == (budget, condition)]
        result = evaluate_budget(strategies, scores)
        every[condition, budget] = result
        metrics |= flat(f"eval/{evaluation}/at_{100 * budget:g}", condition, result)
        title = f"{evaluation}: {100 * budget:g} % of the window, unfocused blocks {UNFOCUSED[condition]}"
        tables.append(table(f"{title}; {composition(strategies[0].focus, scores.tree)}", result))
        if "lens" in result.nll:
            conclusions.append(f"{title}: {conclusion(result)}")
    if every:
        remarks += few_documents(evaluation, next(iter(every.values())).documents)
    return EvalResult(metrics, tables, curves(evaluation, every), conclusions, remarks)


def evaluate_budget(strategies: Sequence[StrategyScores], scores: FocusScores) -> BudgetResult:
    """Return the result of one budget and condition."""
    counts = scores.counts
    values = {"full": scores.full[counts], **{each.strategy: each.nll[counts] for each in strategies}}
    means = DocumentMeans(values, scores.documents[counts])
    names = [each.strategy for each in strategies]
    to_gain = means.difference("random", "oracle")
    lens_minus: dict[str, Interval] = {}
    gain = None
    if "lens" in values:
        lens_minus = {name: means.difference("lens", name) for name in names if name != "lens"}
        least = 0.0 if strategies[0].condition == "drop" else WORTH_GAINING
        if enough(means.documents) and to_gain.low > 0 and to_gain.value >= least:
            gain = means.ratio({"random": 1, "lens": -1}, {"random": 1, "oracle": -1})
    return BudgetResult(
        entries={s.strategy: float(lengths(s.focus.flatten(0, 1), scores.tree).double().mean()) for s in strategies},
        nll={name: means.mean(name) for name in values},
        delta={name: means.difference(name, "full") for name in names},
        accuracy={s.strategy: float(s.right[counts].mean()) for s in strategies},
        lens_minus=lens_minus, to_gain=to_gain, gain=gain, targets=means.targets, documents=means.documents,
    )  # fmt: skip


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


def composition(focus: Tensor, tree: ContextTree) -> str:
    """Return the mean number of entries of each level under focuses [n, V, blocks], as text."""
    found = ""
    raw = float(tree.window)
    for lod in range(1, tree.levels + 1):
        tokens = float((focus == lod).sum(dim=-1).double().mean()) * tree.block_size
        raw -= tokens
        found += f", {tokens * tree.slots / tree.span(lod):.1f} of LOD{lod}"
    return f"{raw:.1f} raw entries{found}"


def table(title: str, result: BudgetResult) -> Table:
    """Return the table of a budget, a row a strategy. The focus gain is in the conclusion."""
    rows = [
        (
            name, f"{result.nll[name].value:.3f}", result.delta[name], per_cent(result.accuracy[name]),
            result.lens_minus.get(name),
        )
        for name in STRATEGIES if name in result.nll
    ]  # fmt: skip
    return Table(title, ("strategy", "NLL", "ΔNLL", "accuracy", "lens minus it"), rows)


def conclusion(result: BudgetResult) -> str:
    """Return the comparison of LensNet with random, recency and surprise, and the focus gain, as text."""
    if not enough(result.documents):
        return no_conclusion(result.documents)
    minus = result.lens_minus
    parts = ["lens does not differ from random"]
    for better, word in ((True, "better"), (False, "worse")):
        names = [n for n in ("random", "recency", "surprise") if (minus[n].high < 0 if better else minus[n].low > 0)]
        if "random" in names:
            parts[0] = f"lens is {word} than random"
        others = [name for name in names if name != "random"]
        if others:
            parts.append(f"{word} than {' and '.join(others)}")
    little = f"too little to gain (random minus oracle {result.to_gain})"
    parts.append(little if result.gain is None else f"focus gain {result.gain}")
    return ", ".join(parts)


def curves(evaluation: str, every: dict[tuple[str, float], BudgetResult]) -> list[Chart]:
    """Return charts of the cost of each strategy after the cursor, and of the focus gain, over budgets."""
    ordered = sorted(every.items(), key=lambda item: item[0])
    x, charts = "budget, per cent of the window", []
    for condition, text in UNFOCUSED.items():
        lines = as_lines((100 * budget, result.delta) for (of, budget), result in ordered if of == condition)
        title = f"{evaluation}: unfocused blocks {text}"
        charts.append(Chart(f"{evaluation}_{condition}", title, x, "ΔNLL after the cursor in nats", lines))
    gains = as_lines(
        (100 * budget, {f"unfocused blocks {UNFOCUSED[condition]}": result.gain})
        for (condition, budget), result in ordered
        if result.gain is not None
    )
    charts.append(Chart(f"{evaluation}_gain", f"{evaluation}: focus gain", x, "focus gain (1 = oracle)", gains))
    return [chart for chart in charts if chart.lines]
