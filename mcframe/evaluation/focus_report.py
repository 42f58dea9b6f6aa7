"""What the strategies come to: NLL behind the cursor at each budget, focus gain, and LensNet against each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import lengths
from mcframe.context.substitutions import Condition
from mcframe.evaluation.bootstrap import Bootstrap
from mcframe.evaluation.focus_baselines import STRATEGIES
from mcframe.evaluation.gist_report import ENOUGH_TARGETS, bounded
from mcframe.hookspecs import Chart, EvalData, EvalResult, Interval, Table

WORTH_GAINING = 0.1
"""Nats between random and oracle from which a focus gain is defined where unfocused blocks are gists: perfect gists
leave nothing to gain, and a ratio of two noises says nothing."""

UNFOCUSED = {"drop": "dropped", "gist": "gists"}


@dataclass(frozen=True)
class Judged:
    """One strategy at one budget: focuses [n, V, blocks], and NLL and accuracy [n, T] averaged over the V."""

    budget: float
    strategy: str
    condition: Condition
    focus: Tensor
    nll: Tensor
    right: Tensor


@dataclass(frozen=True)
class Verdict:
    """One budget and condition.

    nll, accuracy   strategy -> behind the cursor, `full` included; delta: NLL minus that of `full`, paired
    lens_minus      strategy -> NLL of lens minus its; below 0, lens is better
    gain            the focus gain; None where it is not defined
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
    found: Sequence[Judged],
    full: Tensor,
    counts: Tensor,
    held: EvalData,
    tree: ContextTree,
    notes: Sequence[str],
    seed: int,
    resamples: int,
) -> EvalResult:
    """Metrics, a table a budget, curves over budgets, and what they mean.

    full [n, T] uncompressed NLL; counts [n, T] bool: the targets that judge.
    """
    documents = held.documents[:, 1:][counts]
    metrics, tables, verdicts, remarks = dict[str, float](), [], list[str](), list(notes)
    every: dict[tuple[str, float], Verdict] = {}
    for budget, condition in dict.fromkeys((j.budget, j.condition) for j in found):
        chosen = [j for j in found if (j.budget, j.condition) == (budget, condition)]
        verdict = tail_mask(chosen, full, counts, documents, tree, seed, resamples)
        every[condition, budget] = verdict
        metrics |= flat(f"eval/{evaluation}/at_{100 * budget:g}", condition, verdict)
        title = f"{evaluation}: {100 * budget:g} % of the window, unfocused blocks {UNFOCUSED[condition]}"
        tables.append(table(title, verdict))
        if "lens" in verdict.nll:
            verdicts.append(f"{title}: {in_words(verdict)}")
    if every and (targets := next(iter(every.values())).targets) < ENOUGH_TARGETS:
        remarks.append(
            f"{evaluation}: {targets:,} targets behind the cursor, fewer than {ENOUGH_TARGETS:,}: intervals are wide "
            "and may mislead; take more windows"
        )
    return EvalResult(metrics, tables, curves(evaluation, every), verdicts, remarks)


def tail_mask(
    chosen: Sequence[Judged],
    full: Tensor,
    counts: Tensor,
    documents: Tensor,
    tree: ContextTree,
    seed: int,
    resamples: int,
) -> Verdict:
    """The figures of one budget and condition."""
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
    return Verdict(sizes, nll, delta, accuracy, lens_minus, gain, bootstrap.targets, bootstrap.documents)


def flat(prefix: str, condition: str, verdict: Verdict) -> dict[str, float]:
    """Every figure by name, such as `PREFIX/gain/drop`, with `_low` and `_high` for the bounds."""
    metrics = {f"{prefix}/targets": float(verdict.targets), f"{prefix}/documents": float(verdict.documents)}
    for name, interval in verdict.nll.items():
        metrics |= bounded(f"{prefix}/nll/{condition}/{name}", interval)
    for name, interval in verdict.delta.items():
        metrics |= bounded(f"{prefix}/delta/{condition}/{name}", interval)
    for name, interval in verdict.lens_minus.items():
        metrics |= bounded(f"{prefix}/lens_minus/{condition}/{name}", interval)
    if verdict.gain is not None:
        metrics |= bounded(f"{prefix}/gain/{condition}", verdict.gain)
    for name, share in verdict.accuracy.items():
        metrics[f"{prefix}/accuracy/{condition}/{name}"] = share
        metrics[f"{prefix}/entries/{name}"] = verdict.entries[name]
    return metrics


def table(title: str, verdict: Verdict) -> Table:
    """A row a strategy."""
    rows = [
        (
            name, f"{verdict.entries[name]:.1f}", f"{verdict.nll[name].value:.3f}", verdict.delta[name],
            f"{100 * verdict.accuracy[name]:.1f} %", verdict.lens_minus.get(name),
            verdict.gain if name == "lens" else None,
        )
        for name in STRATEGIES if name in verdict.nll
    ]  # fmt: skip
    columns = ("strategy", "entries", "NLL behind the cursor", "ΔNLL", "right", "lens minus it", "focus gain")
    return Table(title, columns, rows)


def in_words(verdict: Verdict) -> str:
    """What the figures say of LensNet."""
    minus = verdict.lens_minus["random"]
    if minus.high < 0:
        against = "lens is better than random"
    elif minus.low > 0:
        against = "lens is worse than random"
    else:
        against = "lens cannot be told from random"
    better = [name for name in ("recency", "surprise") if verdict.lens_minus[name].high < 0]
    worse = [name for name in ("recency", "surprise") if verdict.lens_minus[name].low > 0]
    parts = [against]
    if better:
        parts.append(f"better than {' and '.join(better)}")
    if worse:
        parts.append(f"worse than {' and '.join(worse)}")
    if verdict.gain is None:
        parts.append("too little to gain for a focus gain")
    else:
        parts.append(f"focus gain {verdict.gain}")
    return ", ".join(parts)


def curves(evaluation: str, every: dict[tuple[str, float], Verdict]) -> list[Chart]:
    """What each strategy costs behind the cursor, and the focus gain, over budgets."""
    charts = []
    gains: dict[str, list[tuple[float, Interval]]] = {}
    x = "budget, per cent of the window"
    for condition, word in UNFOCUSED.items():
        lines: dict[str, list[tuple[float, Interval]]] = {}
        for (of, budget), verdict in sorted(every.items(), key=lambda item: item[0]):
            if of != condition:
                continue
            for name, interval in verdict.delta.items():
                lines.setdefault(name, []).append((100 * budget, interval))
            if verdict.gain is not None:
                gains.setdefault(f"unfocused blocks {word}", []).append((100 * budget, verdict.gain))
        if lines:
            title = f"{evaluation}: unfocused blocks {word}"
            charts.append(Chart(f"{evaluation}_{condition}", title, x, "ΔNLL behind the cursor in nats", lines))
    if gains:
        charts.append(Chart(f"{evaluation}_gain", f"{evaluation}: focus gain", x, "focus gain (1 = oracle)", gains))
    return charts
