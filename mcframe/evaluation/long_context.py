"""The evaluation `long_context`: what a model predicts after a history that is far longer than its context.

Every arm reads the history through the same budget of entries; see `history_arms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from mcframe.bounds import Count, Repeats
from mcframe.context.context_tree import ContextTree
from mcframe.evaluation.document_means import DocumentMeans
from mcframe.hookspecs import Chart, EvalData, EvalModel, EvalResult, Evaluation, Interval, SyntheticTask, Table
from mcframe.interfaces.evaluation import Arm, ArmScores

COSTS = ("first_ms", "token_ms", "cache_bytes", "disk_bytes")
"""Attributes of `ArmScores`."""
THIRDS = ("first", "middle", "last")
"""Parts of the history in which the evidence can be."""


@dataclass(frozen=True)
class Scored:
    """Targets after histories of one length.

    Attributes:
        cursor: Tokens of each history.
        nll, right: Arm -> [targets].
        documents: Document of each target [targets].
        depth: Location of the evidence as a fraction of the history [targets]; NaN if unknown.
        entries: Arm -> mean entries of the context.
        costs: Arm -> the medians of `COSTS`.
        chance: Fraction of the answers that a guess gets right; None for text.
    """

    cursor: int
    nll: Mapping[Arm, Tensor]
    right: Mapping[Arm, Tensor]
    documents: Tensor
    depth: Tensor
    entries: Mapping[Arm, float]
    costs: Mapping[Arm, Sequence[float]]
    chance: float | None


class LongContext(Evaluation):
    """Accuracy and NLL after histories of several lengths, read in several ways at one budget.

    Args:
        name: Part of its metrics' names.
        windows: Held-out sequences of each length.
        multiples: Lengths of the history, in budgets.
        budget: Entries of a session's context; None = `session.budget`.
        task: `@task.NAME` in place of what the run trains on.
    """

    def __init__(
        self,
        *,
        name: str = "long_context",
        windows: Repeats = 32,
        multiples: Sequence[Count] = (1, 4, 16, 64),
        budget: Count | None = None,
        task: Callable[[ContextTree], SyntheticTask] | None = None,
    ) -> None:
        self.name, self.windows, self.multiples = name, windows, multiples
        self.budget, self.task = budget, task

    def run(self, model: EvalModel) -> EvalResult:
        """Score every arm after every history."""
        tree, size = model.tree, model.tree.block_size
        budget = self.budget or model.budget
        lengths = [max(1, round((multiple * budget + tree.tail) / size)) * size for multiple in self.multiples]
        histories = [model.held_out(self.windows, self.task, length) for length in lengths]
        model.announce(sum(len(data.tokens) for data in histories))
        found = [_score(model, data, length, budget) for data, length in zip(histories, lengths, strict=True)]
        return _report(self.name, budget, found)


def _score(model: EvalModel, data: EvalData, length: int, budget: int) -> Scored:
    cursor = length - model.tree.tail
    parts: list[tuple[int, Tensor, Tensor, Mapping[Arm, ArmScores]]] = []
    for number, tokens in enumerate(data.tokens):
        scored = data.loss_mask[number, cursor - 1 :]
        evidence = None if data.evidence is None else data.evidence[number, cursor - 1 :]
        known = None if evidence is None else evidence[evidence >= 0]
        depth = torch.full(scored.shape, torch.nan) if evidence is None else evidence / cursor
        parts.append((number, scored, depth, model.after_history(tokens, cursor, budget, known)))
    arms = list(parts[0][3])
    return Scored(
        cursor=cursor,
        nll={arm: torch.cat([scores[arm].nll[mask] for _, mask, _, scores in parts]) for arm in arms},
        right={arm: torch.cat([scores[arm].right[mask] for _, mask, _, scores in parts]) for arm in arms},
        documents=torch.cat([torch.full((int(mask.sum()),), number) for number, mask, _, _ in parts]),
        depth=torch.cat([depth[mask] for _, mask, depth, _ in parts]),
        entries={arm: sum(scores[arm].entries for *_, scores in parts) / len(parts) for arm in arms},
        costs={arm: [median(getattr(scores[arm], cost) for *_, scores in parts) for cost in COSTS] for arm in arms},
        chance=data.chance,
    )


def _report(name: str, budget: int, found: Sequence[Scored]) -> EvalResult:
    metrics: dict[str, float] = {}
    tables, lines, losses = [], dict[str, list[tuple[float, Interval]]](), dict[str, list[tuple[float, Interval]]]()
    for scored in found:
        reference: Arm = "sink_recency" if "sink_recency" in scored.nll else "recency"
        means = DocumentMeans(
            {f"nll {arm}": nll for arm, nll in scored.nll.items()}
            | {f"right {arm}": right for arm, right in scored.right.items()},
            scored.documents,
        )
        rows: list[list[str | int | float | Interval | None]] = []
        for arm in scored.nll:
            accuracy, multiple = means.mean(f"right {arm}"), scored.cursor / budget
            gap = None if arm == reference else means.difference(f"nll {arm}", f"nll {reference}")
            rows.append([arm, round(scored.entries[arm]), accuracy, gap])
            lines.setdefault(arm, []).append((multiple, accuracy))
            _put(metrics, f"eval/{name}/after_{scored.cursor}/accuracy/{arm}", accuracy)
            if gap is not None:
                losses.setdefault(arm, []).append((multiple, gap))
                _put(metrics, f"eval/{name}/after_{scored.cursor}/nll_gap/{arm}", gap)
        chance = "" if scored.chance is None else f", chance {scored.chance:.3f}"
        title = f"{scored.cursor:,} tokens of history, {means.documents} documents, {means.targets} targets{chance}"
        tables.append(Table(title, ("arm", "entries", "accuracy", f"NLL - {reference}"), rows))
        tables += _by_depth(scored)
        tables.append(_costs(scored))
        for arm, (_, _, cache, disk) in scored.costs.items():  # times are in the table alone: they differ each time
            metrics[f"eval/{name}/after_{scored.cursor}/cache_bytes/{arm}"] = float(cache)
            metrics[f"eval/{name}/after_{scored.cursor}/disk_bytes/{arm}"] = float(disk)
    charts = [
        Chart(
            "accuracy", f"Accuracy after a history, {budget} entries", "history / budget", "accuracy", lines, log_x=True
        ),
        Chart("nll", "NLL minus recency with a sink", "history / budget", "nats", losses, log_x=True),
    ]
    return EvalResult(metrics, tables, charts)


def _by_depth(scored: Scored) -> list[Table]:
    """Return the accuracy by the part of the history that holds the evidence."""
    third = (scored.depth * len(THIRDS)).floor()
    if bool(third.isnan().all()):
        return []
    rows: list[list[str | int | float | Interval | None]] = []
    for arm, right in scored.right.items():
        cells: list[Interval | None] = []
        for number in range(len(THIRDS)):
            inside = third == number
            few = not bool(inside.any())
            cells.append(
                None if few else DocumentMeans({"right": right[inside]}, scored.documents[inside]).mean("right")
            )
        rows.append([arm, *cells])
    return [Table("accuracy by the third of the history that holds the evidence", ("arm", *THIRDS), rows)]


def _costs(scored: Scored) -> Table:
    rows: list[list[str | int | float | Interval | None]] = [
        [arm, round(first, 2), round(token, 2), round(cache / 1024, 1), round(disk / 1024, 1)]
        for arm, (first, token, cache, disk) in scored.costs.items()
    ]
    return Table("medians of the cost", ("arm", "first token, ms", "a token, ms", "cache, KiB", "disk, KiB"), rows)


def _put(metrics: dict[str, float], name: str, interval: Interval) -> None:
    metrics[name] = interval.value
    metrics[f"{name}_low"], metrics[f"{name}_high"] = interval.low, interval.high
