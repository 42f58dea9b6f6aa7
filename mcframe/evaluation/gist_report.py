"""Results of gist quality: deltas with intervals, recoveries, tables and conclusions for each subset of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import DISTANCES
from mcframe.evaluation.document_means import DocumentMeans
from mcframe.evaluation.report import as_lines, as_metrics, enough, few_documents, no_conclusion, per_cent
from mcframe.evaluation.target_subsets import DESCRIPTIONS, EVIDENCE, GIST_ENTRY, TAIL, target_subsets
from mcframe.hookspecs import Chart, EvalData, EvalResult, Interval, Table


@dataclass(frozen=True)
class ConditionScores:
    """Scores of n sequences under one focus: [n, T] tensors, NaN where a condition has no prediction.

    Conditions `drop_baseline` and `mean_baseline` are those of the trained baselines.

    Attributes:
        focus: [n, blocks].
        nll: Uncompressed NLL of the model.
        delta: Condition -> NLL minus the uncompressed NLL of the same model.
        right: Condition -> whether the most likely token is right, 1.0 or 0.0.
    """

    focus: Tensor
    nll: Tensor
    delta: dict[str, Tensor]
    right: dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """All conditions under one focus of every sequence.

    Attributes:
        name: Part of the metrics' names, such as `lod1_at_75`.
        lod: Level of the spans.
        entries: Length of the contexts.
        scores: Scores of the conditions.
    """

    name: str
    lod: int
    entries: int
    scores: ConditionScores


@dataclass(frozen=True)
class SubsetResult:
    """Result of one subset of targets of one comparison.

    Attributes:
        targets, documents: Their numbers.
        nll: Uncompressed.
        delta, recovery, gist_minus, accuracy: By condition.
        drop, mean: Name of the condition, of this model or its baseline, with the lower cost; empty if none is scored.
        costs: Whether dropping costs something, that is, its interval is above 0; False with too few documents.
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
        """The conclusion on the gists of this subset."""
        if not enough(self.documents):
            return no_conclusion(self.documents)
        if not self.costs:
            return "dropping costs nothing measurable"
        if "gist" not in self.delta:
            return "dropping costs"
        if not self.gist_minus[self.drop].high < 0:
            return "not measurably better than dropping"
        if "swap" in self.gist_minus and not self.gist_minus["swap"].high < 0:
            return "carries nothing: another document's gist does as well"
        kept = self.recovery["gist"]
        return f"keeps {100 * kept.value:.0f} % ({100 * kept.low:.0f} to {100 * kept.high:.0f} %)"


def evaluate_subset(scores: ConditionScores, where: str, mask: Tensor, documents: Tensor) -> SubsetResult | None:
    """Return the result of a subset, None without targets.

    Args:
        scores: Scores of the conditions.
        where: Name of the subset.
        mask: [n, T] bool, the targets.
        documents: [n, T] document of each target.
    """
    if not bool(mask.any()):
        return None
    # A dropped gist predicts nothing, so its own target is scored by the conditions that have one.
    names = [name for name in scores.delta if where != GIST_ENTRY or not name.startswith("drop")]
    values = {"full": scores.nll[mask], **{name: scores.delta[name][mask] for name in names}}
    means = DocumentMeans(values, documents[mask])
    drop, mean = (
        min((n for n in names if n.startswith(kind)), key=lambda n: means.point[n], default="")
        for kind in ("drop", "mean")
    )
    delta = {name: means.mean(name) for name in names}
    costs = bool(drop) and enough(means.documents) and delta[drop].low > 0
    recovery: dict[str, Interval] = {}
    for name, own in {"gist": "gist", "swap": "swap", "mean": mean}.items():
        if costs and own in names:
            recovery[name] = means.ratio({drop: 1, own: -1}, {drop: 1})
    others = [name for name in names if name != "gist" and "gist" in names]
    return SubsetResult(
        means.targets, means.documents, means.mean("full"), delta, recovery,
        gist_minus={name: means.difference("gist", name) for name in others},
        accuracy={name: float(scores.right[name][mask].mean()) for name in ("full", *names)},
        drop=drop, mean=mean, costs=costs,
    )  # fmt: skip


def describe(
    evaluation: str,
    comparisons: Sequence[Comparison],
    data: EvalData,
    tree: ContextTree,
    notes: Sequence[str],
) -> EvalResult:
    """Return metrics, three tables a comparison, charts by distance, and conclusions."""
    metrics: dict[str, float] = {}
    tables, charts, conclusions, remarks = list[Table](), list[Chart](), list[str](), list(notes)
    for comparison in comparisons:
        masks = target_subsets(comparison.scores.focus, data, tree)
        every = {
            where: evaluate_subset(comparison.scores, where, mask, data.documents[:, 1:])
            for where, mask in masks.items()
        }
        found = {where: result for where, result in every.items() if result is not None}
        metrics |= flat(f"eval/{evaluation}/{comparison.name}", comparison, found)
        length = f"{comparison.entries} of {tree.window} entries"
        title = f"{evaluation}: spans of LOD{comparison.lod} ({tree.span(comparison.lod)} tokens), {length}"
        tables += [kept(title, found), controls(title, found), accuracies(title, found, data.chance)]
        charts += by_distance(f"{evaluation}_{comparison.name}", title, found)
        for where in (EVIDENCE, TAIL):
            if where in found:
                conclusions.append(f"LOD{comparison.lod}, {length}, {DESCRIPTIONS[where]}: {found[where].worth}")
        if TAIL in found:
            remarks += few_documents(f"{evaluation}, {comparison.name}", found[TAIL].documents)
    return EvalResult(metrics, tables, charts, conclusions, list(dict.fromkeys(remarks)))


def flat(prefix: str, comparison: Comparison, found: dict[str, SubsetResult]) -> dict[str, float]:
    """Return every value by name, `PREFIX/delta/CONDITION/WHERE`, with `_low` and `_high` for the bounds."""
    values: dict[str, Interval | float] = {f"{prefix}/entries": float(comparison.entries)}
    for where, result in found.items():
        values[f"{prefix}/targets/{where}"] = float(result.targets)
        values[f"{prefix}/documents/{where}"] = float(result.documents)
        values[f"{prefix}/nll/full/{where}"] = result.nll
        for group in ("delta", "recovery", "gist_minus", "accuracy"):
            values |= {f"{prefix}/{group}/{name}/{where}": each for name, each in getattr(result, group).items()}
    return as_metrics(values)


def kept(title: str, found: dict[str, SubsetResult]) -> Table:
    """Return the table of what a gist keeps of the loss by dropping. A control of a baseline is marked."""
    rows = [
        (DESCRIPTIONS[where], r.targets, _control(r, r.drop), r.delta.get("gist"), r.recovery.get("gist"))
        for where, r in found.items()
    ]
    return Table(f"{title}: ΔNLL in nats, and recovery", ("targets are", "targets", "drop", "gist", "recovery"), rows)


def controls(title: str, found: dict[str, SubsetResult]) -> Table:
    """Return the table of the other controls, and the conclusions."""
    rows = [
        (
            DESCRIPTIONS[where], f"{r.nll.value:.3f}", _control(r, r.mean), r.delta.get("swap"),
            "" if where == GIST_ENTRY else r.worth,
        )
        for where, r in found.items()
    ]  # fmt: skip
    return Table(f"{title}: controls, ΔNLL in nats", ("targets are", "NLL, full", "mean", "swap", "conclusion"), rows)


def _control(result: SubsetResult, name: str) -> str | None:
    return f"{result.delta[name]}{' baseline' if name.endswith('_baseline') else ''}" if name else None


def accuracies(title: str, found: dict[str, SubsetResult], chance: float | None) -> Table:
    """Return the table of accuracies, a column a condition."""
    names = list(dict.fromkeys(name for result in found.values() for name in result.accuracy))
    rows = [[DESCRIPTIONS[where], *(per_cent(r.accuracy.get(name)) for name in names)] for where, r in found.items()]
    guess = "" if chance is None else f", {per_cent(chance)} by guessing"
    columns = ("targets are", *(name.replace("_", " ") for name in names))
    return Table(f"{title}: accuracy of the most likely token{guess}", columns, rows)


def by_distance(name: str, title: str, found: dict[str, SubsetResult]) -> list[Chart]:
    """Return charts of ΔNLL of every condition and of recoveries over the distance after the span."""
    buckets = [(float(high), found[str(high)]) for high in DISTANCES if str(high) in found]
    delta = as_lines((high, result.delta) for high, result in buckets)
    recovery = as_lines((high, result.recovery) for high, result in buckets)
    x = "tokens after the span, upper bound"
    charts = [
        Chart(f"{name}_delta", title, x, "ΔNLL in nats", delta, log_x=True),
        Chart(f"{name}_recovery", title, x, "recovery (1 = nothing lost)", recovery, log_x=True),
    ]
    return [chart for chart in charts if chart.lines]
