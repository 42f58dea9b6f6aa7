"""What the conditions come to: means with intervals, recoveries, a table and a verdict for each region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import DISTANCES
from mcframe.evaluation.bootstrap import Bootstrap
from mcframe.evaluation.target_subsets import EVIDENCE, GIST_ENTRY, TAIL, WORDS, regions
from mcframe.hookspecs import Chart, EvalData, EvalResult, Interval, Table

ENOUGH_TARGETS = 20_000
COLUMNS = ("targets", "nats, full", "drop", "mean", "swap", "gist", "recovery", "so")


@dataclass(frozen=True)
class Comparison:
    """One focus of every sequence under all conditions; see `mcframe.evaluation.gist_quality.Measured`.

    name names the metrics, `lod1_at_75`; lod is the level of its spans, entries the length of its contexts.
    """

    name: str
    lod: int
    entries: int
    focus: Tensor
    nll: Tensor
    delta: dict[str, Tensor]
    right: dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """What one region of one comparison comes to.

    drop, mean   the condition that counts, the cheaper of this model's and its twin's; empty where there is none
    costs        whether dropping costs something: the interval is above 0
    """

    targets: int
    documents: int
    nll: Interval
    delta: dict[str, Interval]
    recovery: dict[str, Interval]
    gist_minus: dict[str, Interval]
    accuracy: dict[str, float]
    drop: str
    mean: str
    costs: bool

    @property
    def worth(self) -> str:
        """In a few words what the gists of this region are worth."""
        if not self.costs:
            return "the spans carried nothing"
        if "gist" not in self.delta:
            return "dropping costs"
        if not self.gist_minus[self.drop].high < 0:
            return "worth nothing: no better than dropping"
        if "swap" in self.gist_minus and not self.gist_minus["swap"].high < 0:
            return "carries nothing: another document's gist does as well"
        kept = self.recovery["gist"]
        return f"keeps {100 * kept.value:.0f} % ({100 * kept.low:.0f} to {100 * kept.high:.0f} %)"


def tail_mask(
    comparison: Comparison, where: str, mask: Tensor, held: EvalData, seed: int, resamples: int
) -> Verdict | None:
    """The figures of the targets in `mask` [n, T]; None where there is no target."""
    if not bool(mask.any()):
        return None
    # A dropped gist predicts nothing, so its own target is judged by the conditions that have one.
    names = [name for name in comparison.delta if where != GIST_ENTRY or not name.startswith("drop")]
    values = {"full": comparison.nll[mask], **{name: comparison.delta[name][mask] for name in names}}
    bootstrap = Bootstrap(values, held.documents[:, 1:][mask], seed=seed, resamples=resamples)
    cheapest = {
        kind: min((n for n in names if n.startswith(kind)), key=lambda n: bootstrap.point[n][0], default="")
        for kind in ("drop", "mean")
    }
    drop, mean = cheapest["drop"], cheapest["mean"]
    delta = {name: bootstrap.mean(name) for name in names}
    costs = bool(drop) and delta[drop].low > 0
    recovery: dict[str, Interval] = {}
    for name in ("gist", "swap", "mean"):
        own = mean if name == "mean" else name
        if costs and own in names:
            recovery[name] = bootstrap.interval(lambda means, own=own: 1 - means[own] / means[drop])  # type: ignore[misc]
    gist_minus = {
        name: bootstrap.interval(lambda means, name=name: means["gist"] - means[name])  # type: ignore[misc]
        for name in names
        if name != "gist" and "gist" in names
    }
    accuracy = {name: float(comparison.right[name][mask].mean()) for name in ("full", *names)}
    return Verdict(
        bootstrap.targets, bootstrap.documents, bootstrap.mean("full"), delta, recovery, gist_minus, accuracy,
        drop, mean, costs,
    )  # fmt: skip


def describe(
    evaluation: str,
    comparisons: Sequence[Comparison],
    held: EvalData,
    tree: ContextTree,
    notes: Sequence[str],
    seed: int,
    resamples: int,
) -> EvalResult:
    """Metrics, a table a focus, a picture by distance, and what they mean."""
    metrics: dict[str, float] = {}
    tables, charts, verdicts, remarks = [], [], list[str](), list(notes)
    for comparison in comparisons:
        masks = regions(comparison.focus, held, tree)
        every = {where: tail_mask(comparison, where, mask, held, seed, resamples) for where, mask in masks.items()}
        found = {where: verdict for where, verdict in every.items() if verdict is not None}
        metrics |= flat(f"eval/{evaluation}/{comparison.name}", comparison, found)
        share = f"{comparison.entries} of {tree.window} entries"
        title = f"{evaluation}: spans of LOD{comparison.lod} ({tree.span(comparison.lod)} tokens), {share}"
        tables.append(Table(title, ("targets are", *COLUMNS), [row(where, v) for where, v in found.items()]))
        tables.append(shares(title, found, held.chance))
        charts += by_distance(f"{evaluation}_{comparison.name}", title, found)
        for where in (EVIDENCE, TAIL):
            if where in found:
                verdicts.append(f"LOD{comparison.lod}, {share}, {WORDS[where]}: {found[where].worth}")
        if TAIL in found and found[TAIL].targets < ENOUGH_TARGETS:
            remarks.append(
                f"{evaluation}, {comparison.name}: {found[TAIL].targets:,} targets behind the cursor, fewer than "
                f"{ENOUGH_TARGETS:,}: intervals are wide and may mislead; take more windows"
            )
    return EvalResult(metrics, tables, charts, verdicts, list(dict.fromkeys(remarks)))


def flat(prefix: str, comparison: Comparison, found: dict[str, Verdict]) -> dict[str, float]:
    """Every figure by name: `PREFIX/delta/CONDITION/WHERE`, with `_low` and `_high` for the bounds."""
    metrics = {f"{prefix}/entries": float(comparison.entries)}
    for where, verdict in found.items():
        metrics[f"{prefix}/targets/{where}"] = float(verdict.targets)
        metrics[f"{prefix}/documents/{where}"] = float(verdict.documents)
        groups = {"delta": verdict.delta, "recovery": verdict.recovery, "gist_minus": verdict.gist_minus}
        groups["nll"] = {"full": verdict.nll}
        for group, intervals in groups.items():
            for name, interval in intervals.items():
                metrics |= bounded(f"{prefix}/{group}/{name}/{where}", interval)
        for name, share in verdict.accuracy.items():
            metrics[f"{prefix}/accuracy/{name}/{where}"] = share
    return metrics


def bounded(name: str, interval: Interval) -> dict[str, float]:
    """An interval as three metrics; those that are undefined are left out."""
    three = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: value for key, value in three.items() if math.isfinite(value)}


def row(where: str, verdict: Verdict) -> list[str | int | float | Interval | None]:
    """A region as a row of the table; a control taken from a twin says so."""

    def control(name: str) -> str | None:
        if not name:
            return None
        return f"{verdict.delta[name]}{' twin' if name.endswith('_twin') else ''}"

    recovery = verdict.recovery.get("gist")
    return [
        WORDS[where], verdict.targets, f"{verdict.nll.value:.3f}", control(verdict.drop), control(verdict.mean),
        verdict.delta.get("swap"), verdict.delta.get("gist"), recovery,
        "" if where == GIST_ENTRY else verdict.worth,
    ]  # fmt: skip


def shares(title: str, found: dict[str, Verdict], chance: float | None) -> Table:
    """How often the likeliest token is right, a row a region and a column a condition."""
    names = list(dict.fromkeys(name for verdict in found.values() for name in verdict.accuracy))
    rows = [
        [WORDS[where], *(f"{100 * v.accuracy[name]:.1f} %" if name in v.accuracy else None for name in names)]
        for where, v in found.items()
    ]
    guess = "" if chance is None else f"; guessing gets {100 * chance:.1f} %"
    return Table(f"{title}: likeliest token right{guess}", ("targets are", *(n.replace("_", " ") for n in names)), rows)


def by_distance(name: str, title: str, found: dict[str, Verdict]) -> list[Chart]:
    """ΔNLL of every condition and the recoveries, against the distance behind the span."""
    buckets = [(high, found[str(high)]) for high in DISTANCES if str(high) in found]
    delta: dict[str, list[tuple[float, Interval]]] = {}
    recovery: dict[str, list[tuple[float, Interval]]] = {}
    for high, verdict in buckets:
        for condition, interval in verdict.delta.items():
            delta.setdefault(condition.replace("_", " "), []).append((float(high), interval))
        for condition, interval in verdict.recovery.items():
            recovery.setdefault(condition, []).append((float(high), interval))
    x = "tokens behind the span, upper bound"
    charts = [Chart(f"{name}_delta", title, x, "ΔNLL in nats", delta, log_x=True)]
    if recovery:
        charts.append(Chart(f"{name}_recovery", title, x, "recovery (1 = nothing lost)", recovery, log_x=True))
    return charts if buckets else []
